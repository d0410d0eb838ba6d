"""What every part of the pipeline rests on: errors, durable files, records, config sections, random numbers, text."""
