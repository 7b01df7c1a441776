"""Where models are kept: folders, buckets, Weights & Biases; and the cache between them and us."""
