"""The only place that imports DeepSpeed: process group, engine, optimizer, schedule, state adapter."""
