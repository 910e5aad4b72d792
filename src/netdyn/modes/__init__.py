"""Order statistics of local fields, as functions of tensors."""
