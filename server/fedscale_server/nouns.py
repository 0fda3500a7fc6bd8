"""The verbs of ``fedscale server``, ``project`` and ``run``: where each is and what it does."""

from __future__ import annotations

from fedscale.cli.lazy import Entry, group

server = group(
    "Run a coordinator.",
    {
        "init": Entry("fedscale_server.cli_start:init", "Make a coordinator's home: authority, certificates, settings."),
        "start": Entry("fedscale_server.cli_start:start", "Serve until told to stop."),
        "status": Entry("fedscale_server.cli_server:status", "Show the sites and the runs of a coordinator."),
        "open": Entry("fedscale_server.cli_open:open_", "Print a link that opens the dashboard once, for the operator."),
        "doctor": Entry("fedscale_server.cli_doctor:doctor", "Check this coordinator: certificates, database, audit trail, what is open to whom."),
        "user": Entry("fedscale_server.nouns:user", "Decide who may log in to the dashboard."),
    },
)

user = group(
    "Decide who may log in to the dashboard.",
    {
        "add": Entry("fedscale_server.cli_user:add", "Let somebody log in to the dashboard, or change role and password."),
        "list": Entry("fedscale_server.cli_user:list_", "List who may log in to the dashboard."),
        "remove": Entry("fedscale_server.cli_user:remove", "Shut a user out of the dashboard at once."),
    },
)

project = group(
    "Group sites and runs, invite sites.",
    {
        "create": Entry("fedscale_server.cli_project:create", "Make a project."),
        "list": Entry("fedscale_server.cli_project:list_", "List the projects."),
        "invite": Entry("fedscale_server.cli_project:invite", "Print a one-time ticket for a site."),
        "nodes": Entry("fedscale_server.cli_project:nodes", "List the sites of a project, or of all."),
        "revoke": Entry("fedscale_server.cli_project:revoke", "Shut a site out at once."),
    },
)

run = group(
    "Submit, watch and steer runs, fetch their results.",
    {
        "submit": Entry("fedscale_server.cli_submit:submit", "Send a job to a project's sites."),
        "lead": Entry("fedscale_server.cli_lead:lead", "Let a Flower app's own ServerApp lead a run, in this process."),
        "list": Entry("fedscale_server.cli_run:list_", "List the runs, newest first."),
        "show": Entry("fedscale_server.cli_run:show", "Show where a run stands and what each site contributed."),
        "watch": Entry("fedscale_server.cli_run:watch", "Follow a run until it ends; exit code 1 when it failed."),
        "stop": Entry("fedscale_server.cli_run:stop", "End a run now; its last model is kept."),
        "pause": Entry("fedscale_server.cli_run:pause", "Begin no further round until the run is resumed."),
        "resume": Entry("fedscale_server.cli_run:resume", "Go on with a paused run."),
        "report": Entry("fedscale_server.cli_run:report", "Write a run's report, metrics and summary into a folder."),
        "compare": Entry("fedscale.cli.compare:compare", "Compare runs by the folders they left: one table, and one page with their curves."),
        "track": Entry("fedscale_server.cli_track:track", "Send a run's curves to TensorBoard, MLflow or a table, as it goes on."),
        "card": Entry("fedscale_server.cli_card:card", "Write a run's model card as a page, as Markdown and as JSON."),
        "export": Entry("fedscale_server.cli_export:export", "Write a run's newest model as safetensors."),
    },
)
