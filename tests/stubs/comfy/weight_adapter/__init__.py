"""LoRAs and their like."""
