"""The modules of the kinds of attention, one file each; what else is special to a kind is in the folder above."""
