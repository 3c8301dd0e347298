"""What users import: trained networks as pipelines, and folders of images turned into folders of results."""
