"""Records what a cluster takes: python tests/launch/recorded/record_crds.py NAME=FILE ... > .../crds.json.

Facts alone: fields, types and limits of the CustomResourceDefinitions in each FILE, as JobSet and Kueue publish
them (config/components/crd/bases of kubernetes-sigs/jobset and kueue, or `kubectl get crd NAME -o yaml`); no
descriptions, no rules in CEL, and of a pod what llamax has a reason to write. NAME says where FILE is from.
"""

import json
import sys
from pathlib import Path

import yaml

# Of the groups jobset.x-k8s.io and kueue.x-k8s.io.
KINDS = ('JobSet', 'ClusterQueue', 'LocalQueue', 'ResourceFlavor')
KEPT = (
  'type', 'required', 'enum', 'items', 'additionalProperties', 'pattern', 'format',
  'minimum', 'maximum', 'minLength', 'maxLength', 'minItems', 'maxItems', 'minProperties', 'maxProperties',
  'x-kubernetes-int-or-string', 'x-kubernetes-preserve-unknown-fields', 'x-kubernetes-embedded-resource',
)  # fmt: skip
# Most of a JobSet's schema: other containers, volumes, hooks of a pod. A manifest that has one of them is
# refused by what is recorded here: record it then.
LEFT_OUT = {
  'affinity', 'ephemeralContainers', 'lifecycle', 'livenessProbe', 'readinessProbe', 'startupProbe',
  'topologySpreadConstraints', 'volumeClaimPolicies', 'managedFields', 'status',
}  # fmt: skip
VOLUMES = {'name', 'configMap', 'csi', 'emptyDir', 'hostPath', 'persistentVolumeClaim', 'secret'}


def bare(schema):
  if not isinstance(schema, dict):
    return schema
  made = {key: bare(schema[key]) for key in KEPT if key in schema}
  if 'properties' in schema:
    names = set(schema['properties']) - LEFT_OUT
    if 'persistentVolumeClaim' in names:
      names &= VOLUMES
    made['properties'] = {name: bare(schema['properties'][name]) for name in sorted(names)}
  return made


def main(*words):
  sources, schemas = set(), {}
  for word in words:
    source, _, file = word.partition('=')
    sources.add(source)
    for crd in filter(None, yaml.load_all(Path(file).read_text(), yaml.CSafeLoader)):
      kind = crd.get('spec', {}).get('names', {}).get('kind')
      for version in crd['spec']['versions'] if kind in KINDS else ():
        schemas[f'{crd["spec"]["group"]}/{version["name"]} {kind}'] = bare(version['schema']['openAPIV3Schema'])
  print(json.dumps({'sources': sorted(sources), 'schemas': schemas}, separators=(',', ':')))


if __name__ == '__main__':
  main(*sys.argv[1:])
