"""The only code that knows torch's loaders, webdataset, ffcv and accelerate."""
