"""The pool of partially labelled cases: table, targets and arrays, and how it is built, audited and compared."""
