"""What training leaves behind and prediction takes up, as it lies on the disk: a model's config and its weights."""
