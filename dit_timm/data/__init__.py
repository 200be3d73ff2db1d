"""From files to batches: what an image looks like, what a network is shown of it, data sets, augmentation, loaders."""
