"""train --search: several recipes around the automatic one, compared on the held-out rows."""
