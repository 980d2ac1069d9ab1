"""The kinds of tokenizer, one file for each."""
