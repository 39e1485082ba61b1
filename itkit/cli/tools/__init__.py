"""The declarations of the data tools, one file each; they import nothing but the words they are made of."""
