"""How the processes of a run find each other, agree, and hear of one that dies. Importing this imports no torch."""
