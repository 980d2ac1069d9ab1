"""The legend of dimension letters: array names, einsum strings, sharding rules all use it."""

LETTERS = {
  'B': 'batch (sequences)',
  'T': 'query position',
  'S': 'key position',
  'D': 'model width',
  'N': 'query heads',
  'K': 'key/value heads',
  'G': 'query heads per key/value head (N / K)',
  'H': 'head width',
  'F': 'feed-forward width',
  'V': 'vocabulary',
  'L': 'layers stacked by scan',
  'E': 'experts',
}
