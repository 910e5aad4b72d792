"""Order statistics of local fields: tensors in, numbers out."""
