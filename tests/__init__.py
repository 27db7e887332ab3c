"""The tests of minivit; a package, so that they find their helpers from any folder."""
