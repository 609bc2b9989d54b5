"""Versions of the golden vectors and of the folder that they are exported to.

:data:`FORMAT_VERSION` rises when a program that reads the folder as it was described before would misread it or
stop. A member or a file that is only added does not raise it.

:data:`VECTORS_VERSION` is ``MAJOR.MINOR``. MAJOR rises when a case is removed or has other arguments, other expected
values or another tolerance: the same implementation may then fail where it passed. MINOR rises when cases are only
added, or a name or a source is reworded. ``refnorm conformance compare DIR`` lists the difference between an export
and this package, and says which of the two it is.
"""

FORMAT = "refnorm-golden"
FORMAT_VERSION = 1
VECTORS_VERSION = "1.0"
