"""A sequence in autograd and compiled graphs: function, operator, higher derivatives."""
