"""What every room may use: errors, checks of arguments, files that are written whole, sharded tensors."""
