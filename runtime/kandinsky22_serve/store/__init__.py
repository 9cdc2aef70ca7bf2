"""What must survive: jobs, pictures and deliveries, in one SQLite file and a folder of pictures beside it."""
