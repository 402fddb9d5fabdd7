"""Can not be imported: it needs cyclic_two, which needs it."""

from cyclic_two import second

first = second
