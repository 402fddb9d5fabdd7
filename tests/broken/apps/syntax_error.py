"""Can not be compiled: a return stands outside any function."""

return 42  # noqa: F706
