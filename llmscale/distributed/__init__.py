"""How the processes of a run find each other: their places, their meeting, and word of one that dies. Without torch."""
