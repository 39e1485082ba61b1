"""The one layout to others and back: one file a layout, and what all of them share."""
