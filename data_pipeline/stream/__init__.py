"""The endless stream of samples that are made as text is read: lanes, their documents and the mixture of sources."""
