"""Can not be imported: it raises at once."""

raise RuntimeError("the database is away")
