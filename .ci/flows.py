"""The one flow that .ci/run gives to the wheel that it has just installed."""

from heartbeat import DataFlow


class AskTheServer(DataFlow):
    run_interval = 60

    def run(self):
        with self.connection() as conn:
            return conn.execute("SHOW server_version").fetchone()[0]
