"""What a GPU brings: the parts of an image's way on cores and GPU, and the service with its model on a GPU."""
