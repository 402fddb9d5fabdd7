"""Can not be imported: it needs cyclic_one, which needs it."""

from cyclic_one import first

second = first
