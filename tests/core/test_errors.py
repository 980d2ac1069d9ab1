"""The nearest-name hints."""

import pytest

from llamax.core.errors import UserError, divisors_near, multiples_near, nearest, pick


def test_nearest_offers_the_close_word_or_the_whole_list():
  assert nearest('cosin', ['cosine', 'linear']) == " Did you mean 'cosine'?"
  assert nearest('zzz', ['cosine', 'linear']) == ' Known: cosine, linear.'


def test_pick_refuses_by_name():
  assert pick({'a': 1}, 'a', 'optim.name') == 1
  with pytest.raises(UserError, match=r"optim.name='adam' is not known. Did you mean 'adamw'\?"):
    pick({'adamw': 1}, 'adam', 'optim.name')


@pytest.mark.parametrize(
  ('n', 'wanted', 'text'), [(12, 5, '4 or 6'), (12, 4, '4 or 6'), (12, 20, '12'), (7, 3, '1 or 7')]
)
def test_divisors_near(n, wanted, text):
  assert divisors_near(n, wanted) == text


@pytest.mark.parametrize(('base', 'wanted', 'text'), [(8, 20, '16 or 24'), (8, 3, '8'), (8, 16, '16 or 24')])
def test_multiples_near(base, wanted, text):
  assert multiples_near(base, wanted) == text
