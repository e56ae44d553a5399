"""Many samples from one file of distributions: what each is to be, how stages overlap, what came of them."""
