"""Texts by which two tokenizers are told apart."""

from llamax.data.tokenizer import Tokenizer

TEXTS = (
  '',
  ' ',
  'a',
  'Once upon a time, there was a little girl named Lily. She LOVED apples!',
  '  two  spaces   three    four     five      six       seven',
  'trailing space \n\n\n  new lines\r\n\r\n\tand\t\ttabs\t\t\t\n \n  \n',
  'def fizz(n: int) -> str:\n  if n % 15 == 0:\n    return "FizzBuzz"  # 3 * 5\n\n\nclass A_b(C):\n\tx = 0x1F',
  '0 1 12 123 1234 12345 1234567890 3.14159 1,000,000 -7e-10 2026-11-22T12:34:56Z',
  "I'm you're he'll WE'D they've It's o'clock 'quoted'",
  'naïve façade Ünïcödé ÀÉÎÕÜ ß œ — “quotes” … ½ ² €',
  'Привет, мир! Γειά σου Κόσμε. שלום עולם مرحبا بالعالم नमस्ते दुनिया สวัสดีชาวโลก',
  '你好，世界。これはテストです。한국어 문장입니다.',
  '😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ 🏴‍☠️',
  '\0\x01\x02\x7f\x80\x9f\xa0\xad\ufeff\u200b\u2028\ufffd\U0010ffff\ue000',
  '▁ ▁▁ a▁b',
  'https://example.org/a_b-c?d=e&f=%20#g <s></s><unk><|endoftext|> [INST] <0x41>',
  '{"key": [1, 2.5, null, true], "text": "a\\nb"} $x^2 + \\frac{1}{2}$ |---|---|',
  'e\u0301 \u1e9b\u0323 ﬁ Å \u212b',
  'aaaaaaaaaaaaaaaaaaaaaaa ---------------- ================ ................ \u3000\u3000',
)


def difference(source: Tokenizer, target: Tokenizer) -> str | None:
  """The first text that the two spell by other ids, or give back otherwise; None: there is none."""
  if source.vocab_size != target.vocab_size:
    return f'{source.vocab_size} ids, {target.vocab_size} ids'
  for text in TEXTS:
    ids, found = source.encode(text), target.encode(text)
    if ids != found:
      at = next(
        (i for i, (a, b) in enumerate(zip(ids, found, strict=False)) if a != b), min(len(ids), len(found))
      )
      names = [repr(t.piece(x[at])) if at < len(x) else 'the end' for t, x in ((source, ids), (target, found))]
      return f'{text[:40]!r}: token {at} is {names[0]}, {names[1]}'
    if source.decode(ids) != target.decode(ids):
      return f'{text[:40]!r}: given back as {source.decode(ids)[:40]!r}, {target.decode(ids)[:40]!r}'
  for token in range(source.vocab_size):
    if source.token_bytes(token) != target.token_bytes(token):
      return f'id {token} is {source.token_bytes(token)[:40]!r}, {target.token_bytes(token)[:40]!r}'
  return None
