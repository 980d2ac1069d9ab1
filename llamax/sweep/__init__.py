"""Many runs of one config: which ones, in what order, what became of them."""
