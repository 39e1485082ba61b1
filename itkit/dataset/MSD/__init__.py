"""Medical Segmentation Decathlon: what its tasks say of themselves, and the converter."""
