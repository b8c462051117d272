"""A fleet that is not there: the router's own core against modelled endpoints and recorded load."""
