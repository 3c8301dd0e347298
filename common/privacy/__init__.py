"""Did a generator copy a patient? Detection, verdict, report, and taking the copies out."""
