"""From records to text and tables; never imports torch."""
