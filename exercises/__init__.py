"""One module a day, by week."""
