"""Fits for test_scaling.py in a process of its own, as JSON: there scipy has one thread."""

import dataclasses
import json
import math
import sys

import numpy as np

from llamax.core.errors import UserError
from llamax.sweep.scaling import Law, Point, fit

CHINCHILLA = Law(E=1.69, A=406.4, alpha=0.34, B=410.7, beta=0.28)  # arXiv 2203.15556, section 3.3
PLANTED = Law(E=1.2, A=20, alpha=0.3, B=300, beta=0.45)
SIZES, COUNTS = (1e5, 3.2e5, 1e6, 3.2e6, 1e7), (1e5, 2e5, 4e5, 8e5, 1.6e6)


def ladder(law, sizes, counts, noise=0.0, seed=0):
  draw = np.random.default_rng(seed)
  return [
    Point(f'{n:.0f}-{d:.0f}', n, d, float(law.loss(n, d)) * math.exp(noise * draw.normal()), 6 * n * d)
    for n in sizes
    for d in counts
  ]


CASES = {
  'chinchilla': ladder(CHINCHILLA, np.geomspace(44e6, 16e9, 6), np.geomspace(1e9, 4e11, 5)),
  'one_size': ladder(PLANTED, (1e6,), COUNTS),
  'one_count': ladder(PLANTED, SIZES, (1e6,)),
  'in_step': [point for n in SIZES for point in ladder(PLANTED, (n,), (20 * n,))],
  'too_few': ladder(PLANTED, SIZES[:2], COUNTS[:2]),
  'outlier': ladder(PLANTED, SIZES, COUNTS)[:-1] + ladder(PLANTED, SIZES[-1:], COUNTS[-1:], noise=0.3, seed=1),
  'size_without_effect': ladder(dataclasses.replace(PLANTED, A=0.0), SIZES, COUNTS),
  'much_noise': ladder(PLANTED, SIZES, COUNTS, 0.03, 2),
  'near_sizes': ladder(PLANTED, (1e6, 1.05e6, 1.1e6), COUNTS, noise=0.02),
} | {f'noisy{seed}': ladder(PLANTED, SIZES, COUNTS, 0.003, seed) for seed in range(5)}


def case(points):
  try:
    found = fit(points, repeats=25)
  except UserError as error:
    return {'error': str(error)}
  return {
    'law': dataclasses.asdict(found.law),
    'intervals': found.intervals(),
    'unknown': found.unknown,
    'rough': found.rough,
    'residuals': found.residuals.tolist(),
  }


if __name__ == '__main__':
  json.dump({name: case(points) for name, points in CASES.items()}, sys.stdout)
