"""From an index to an image: the image sets, the order of an epoch, and the loader of views."""
