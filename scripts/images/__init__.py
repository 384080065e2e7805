"""What container images are made of: their requirements, their bill of materials, their base."""
