"""What the public fal package offers, row by row, and the test that drives each through a whole platform.

A test is named as `file::function`, files in this folder without theirs. `test_rows.py` checks that each exists. A row
says what fal has; where this platform refuses or passes over it, the test shows that, and docs/migrating.md says why.
"""

from __future__ import annotations

SETTINGS = "test_settings_table.py"
ENDPOINTS = "test_endpoints_table.py"
ERRORS = "test_errors_table.py"
TOOLS = "test_toolkit_table.py"
CLI = "test_cli_table.py"
PYTHON = "test_from_python.py"
SCALING = "test_scaling.py"
TOOLKIT = "test_toolkit.py"
TENDING = "test_looking_after.py"
CARDS = "test_cards.py"
TERMINALS = "test_terminals.py"
FUNCTIONS = "test_functions.py"
SERVERS = "test_web_servers.py"
CLIENT = "tests/clients/test_python_realtime.py"
PASSED_OVER = f"{SETTINGS}::test_accepted_without_effect"

Rows = dict[str, tuple[str, ...]]

CLASS_SETTINGS: Rows = {
    "name=": (f"{SETTINGS}::test_the_name_that_a_class_gets", f"{SETTINGS}::test_a_parents_name_wins"),
    "app_name": (f"{SETTINGS}::test_names",),
    "app_auth": (f"{SETTINGS}::test_app_auth",),
    "machine_type": (f"{SETTINGS}::test_machine_types_in_order", f"{SETTINGS}::test_refusals"),
    "num_gpus": (f"{CARDS}::test_two_cards_for_one_runner_are_counted",),
    "regions": (PASSED_OVER,),
    "requirements": (f"{SETTINGS}::test_requirements_from_a_folder_of_this_machine", f"{SETTINGS}::test_refusals"),
    "requirements_context_dir": (f"{SETTINGS}::test_requirements_from_a_folder_of_this_machine",),
    "local_python_modules": (f"{SETTINGS}::test_local_python_modules_travel",),
    "app_files": (f"{SETTINGS}::test_app_files_lie_where_the_app_runs_and_at_app",),
    "app_files_ignore": (f"{SETTINGS}::test_app_files_lie_where_the_app_runs_and_at_app",),
    "app_files_context_dir": (f"{SETTINGS}::test_app_files_lie_where_the_app_runs_and_at_app",),
    "python_version": (f"{SETTINGS}::test_python_version_resolver_and_kind",),
    "resolver": (f"{SETTINGS}::test_python_version_resolver_and_kind",),
    "kind": (f"{SETTINGS}::test_python_version_resolver_and_kind", f"{SETTINGS}::test_refusals"),
    "image": (f"{SETTINGS}::test_refusals",),
    "keep_alive": (
        f"{SCALING}::test_from_zero_and_back_after_keep_alive",
        f"{SETTINGS}::test_scaling_settings_of_class_parent_and_host_kwargs",
    ),
    "min_concurrency": (f"{SCALING}::test_min_stays_warm_without_traffic",),
    "max_concurrency": (f"{SCALING}::test_never_above_max_and_the_rest_waits",),
    "concurrency_buffer": (f"{SETTINGS}::test_a_buffer_adds_runners_to_the_load",),
    "concurrency_buffer_perc": (f"{SETTINGS}::test_a_buffer_adds_runners_to_the_load",),
    "scaling_delay": (f"{SETTINGS}::test_scaling_delay_holds_a_start_back",),
    "max_multiplexing": (f"{ENDPOINTS}::test_the_current_request_is_each_ones_own",),
    "request_timeout": (f"{SETTINGS}::test_request_timeout",),
    "request_start_timeout": (f"{SETTINGS}::test_request_start_timeout",),
    "startup_timeout": (f"{SETTINGS}::test_startup_timeout",),
    "termination_grace_period_seconds": (f"{SETTINGS}::test_termination_grace_ends_a_runner_that_does_not",),
    "skip_retry_conditions": (f"{SETTINGS}::test_how_often_a_request_is_tried", f"{SETTINGS}::test_refusals"),
    "retry_config": (f"{SETTINGS}::test_how_often_a_request_is_tried", f"{SETTINGS}::test_refusals"),
    "secrets": (
        f"{SETTINGS}::test_secrets_are_those_that_are_listed",
        f"{TENDING}::test_secrets_rollout_and_rollback",
    ),
    "data_mounts": (PASSED_OVER, f"{TOOLKIT}::test_two_apps_share_the_folder_and_the_values"),
    "metrics_port": (PASSED_OVER,),
    "private_logs, compile_bytecode, metadata, exposed_port, setup_function": (PASSED_OVER,),
    "_scheduler, _scheduler_options, _base_image, force": (PASSED_OVER,),
    "health_check_config": (f"{ENDPOINTS}::test_a_health_check_of_ones_own_path",),
    "host_kwargs": (f"{SETTINGS}::test_scaling_settings_of_class_parent_and_host_kwargs",),
    "isolate_channel, local_file_path": (PASSED_OVER,),
    "version": (f"{ENDPOINTS}::test_hints_and_health",),
    "unknown setting": (f"{SETTINGS}::test_an_unknown_setting_is_refused_with_the_closest",),
    "app name from the class": (f"{SETTINGS}::test_the_name_that_a_class_gets",),
    "__init__ overridden": (f"{SETTINGS}::test_refusals",),
    "instance outside a runner": (f"{SETTINGS}::test_an_instance_is_made_on_a_worker_only",),
}

LIFE_CYCLE: Rows = {
    "current app": (f"{ENDPOINTS}::test_setup_runs_before_the_first_request",),
    "setup, then RUNNING": (f"{ENDPOINTS}::test_setup_runs_before_the_first_request",),
    "setup that raises": (
        f"{ENDPOINTS}::test_setup_that_fails_is_said_to_callers_and_in_the_log",
        "test_calling.py::test_setup_that_raises_ends_the_request",
    ),
    "handle_exit, drain, teardown": (f"{ENDPOINTS}::test_a_runner_that_stops_ends_in_order",),
    "main thread": (f"{ENDPOINTS}::test_setup_runs_before_the_first_request",),
    "current_request": (f"{ENDPOINTS}::test_the_current_request_is_each_ones_own",),
    "provide_hints": (f"{ENDPOINTS}::test_hints_and_health",),
    "health": (f"{ENDPOINTS}::test_hints_and_health",),
}

ENDPOINT_KINDS: Rows = {
    "endpoint is POST only": (f"{ENDPOINTS}::test_endpoints_are_post_only_and_may_nest",),
    "nested paths": (f"{ENDPOINTS}::test_endpoints_are_post_only_and_may_nest",),
    "one route per method": (f"{ENDPOINTS}::test_endpoints_that_cannot_be_meant",),
    "FastAPI handlers": (f"{ENDPOINTS}::test_handlers_are_fastapis",),
    "sync in threads, async on the loop": (
        f"{ENDPOINTS}::test_sync_handlers_run_in_threads_and_async_ones_on_the_loop",
    ),
    "health_check=": (
        f"{ENDPOINTS}::test_a_health_check_of_ones_own_path",
        "test_health.py::test_an_ill_runner_stays_until_another_one_serves_and_no_caller_notices",
        "test_health.py::test_on_demand_a_runner_is_asked_after_a_500_alone",
    ),
    "is_websocket=": (
        f"{ENDPOINTS}::test_a_websocket",
        f"{ENDPOINTS}::test_endpoints_that_cannot_be_meant",
        "test_connections.py::test_text_and_bytes_go_both_ways_in_order",
    ),
    "billing=": (f"{PYTHON}::test_names_that_are_only_there_to_say_what_to_do",),
    "empty app": (f"{ENDPOINTS}::test_endpoints_that_cannot_be_meant",),
    "realtime unary": (f"{ENDPOINTS}::test_realtime_unary",),
    "realtime server streaming": (f"{ENDPOINTS}::test_realtime_server_streaming",),
    "realtime client streaming": (f"{ENDPOINTS}::test_realtime_client_streaming",),
    "realtime bidi": (f"{ENDPOINTS}::test_realtime_bidirectional",),
    "realtime buffering and timeouts": (
        "tests/clients/test_python_realtime.py::test_streaming_timeouts_and_buffering",
    ),
    "realtime encoders": ("tests/clients/test_python_realtime.py::test_encoders_of_the_callers_choice",),
    "realtime ends with an error frame": (f"{PYTHON}::test_a_realtime_session",),
}

ERROR_ANSWERS: Rows = {
    "body fails validation": (f"{ERRORS}::test_a_body_that_fails_validation",),
    "FieldException": (f"{ERRORS}::test_field_exception", f"{ERRORS}::test_answers_with_a_detail"),
    "AppException": (f"{ERRORS}::test_answers_with_a_detail",),
    "RequestCancelledException": (f"{ERRORS}::test_answers_with_a_detail",),
    "HTTPException": (f"{ERRORS}::test_answers_with_a_detail",),
    "unknown path": (f"{ERRORS}::test_answers_with_a_detail",),
    "GPUException, CUDAOutOfMemoryException, texts": (
        f"{ERRORS}::test_a_gpu_failure_is_a_503_that_replaces_the_runner",
    ),
    "output does not match": (f"{ERRORS}::test_answers_with_a_detail",),
    "anything else": (
        f"{ERRORS}::test_answers_with_a_detail",
        f"{ERRORS}::test_an_unexpected_error_stands_in_the_log",
    ),
    "catch_gpu_exceptions": (f"{ERRORS}::test_a_gpu_failure_is_a_503_that_replaces_the_runner",),
}

DOCUMENT: Rows = {
    "x-fal-order-paths": (f"{ENDPOINTS}::test_the_document_keeps_orders",),
    "x-fal-order-properties": (f"{ENDPOINTS}::test_the_document_keeps_orders",),
    "x-fal-protocol": (f"{ENDPOINTS}::test_the_document_tells_of_sockets_and_health",),
    "ui, x-fal": (f"{TOOLS}::test_fields_tell_the_playground_what_to_show",),
    "/health is listed": (f"{ENDPOINTS}::test_the_document_tells_of_sockets_and_health",),
    "kept with the deploy": (f"{ENDPOINTS}::test_the_document_keeps_orders",),
}

FILES_STREAMS_CANCELS: Rows = {
    "file inputs": (
        f"{TOOLKIT}::test_files_of_an_answer_can_be_fetched_and_sent_back",
        f"{TOOLS}::test_inputs_that_are_refused_at_the_door",
    ),
    "streams": (f"{ENDPOINTS}::test_a_stream", f"{PYTHON}::test_stream_yields_lines_and_says_a_refusal"),
    "cancel with a route": (f"{ENDPOINTS}::test_a_cancel_reaches_the_apps_own_route",),
    "cancel without a route": (f"{ENDPOINTS}::test_code_without_a_cancel_route_goes_on_to_its_end",),
    "direct caller hangs up": (f"{ENDPOINTS}::test_a_caller_who_hangs_up_is_noticed",),
    "request headers": (
        f"{ENDPOINTS}::test_request_headers_and_variables",
        f"{TOOLKIT}::test_a_bucket_that_the_caller_names_is_checked",
    ),
    "variables": (
        f"{ENDPOINTS}::test_request_headers_and_variables",
        f"{PYTHON}::test_an_apps_key_is_its_own_and_goes_with_it",
    ),
}

FUNCTIONS_AND_CLIENTS: Rows = {
    "fal.function(serve=True), setup_function": (f"{ENDPOINTS}::test_a_served_function_with_setup_and_a_cached_one",),
    "calling a fal.function": (
        f"{FUNCTIONS}::test_a_call_returns_its_value_and_shows_what_it_prints",
        f"{FUNCTIONS}::test_without_a_platform_one_is_started_and_gone_with_the_script",
    ),
    "exceptions of a fal.function": (f"{FUNCTIONS}::test_an_exception_is_the_callers",),
    "submit, spawn": (f"{FUNCTIONS}::test_submitted_calls_run_at_the_same_time",),
    "on": (f"{FUNCTIONS}::test_settings_choose_another_app",),
    "setup_function of a call, run_local": (f"{FUNCTIONS}::test_the_setup_function_is_called_once_per_runner",),
    "exposed_port": (
        f"{SERVERS}::test_every_path_and_method_is_the_servers",
        f"{SERVERS}::test_websockets_are_the_servers",
        f"{SERVERS}::test_a_rolling_deploy_has_two_workers_on_one_host",
    ),
    "fal.cached": (f"{ENDPOINTS}::test_a_served_function_with_setup_and_a_cached_one",),
    "AppClient": ("test_app_client.py::test_endpoints_are_methods_that_take_and_return_what_they_say",),
    "fal.apps.run": (f"{PYTHON}::test_run_waits_and_tells_what_the_app_refused",),
    "fal.apps.submit, RequestHandle, statuses": (f"{PYTHON}::test_a_request_tells_its_statuses_in_order",),
    "fal.apps.stream": (f"{PYTHON}::test_stream_yields_lines_and_says_a_refusal",),
    "fal.apps.ws": (f"{PYTHON}::test_calls_over_one_websocket",),
    "fal.apps._connect": (f"{PYTHON}::test_a_realtime_session",),
    "app ids": (f"{PYTHON}::test_ids_with_a_slash_with_a_hyphen_and_without_an_owner",),
    "SyncServerlessClient(host, api_key, profile, team)": (f"{PYTHON}::test_whose_key_it_is",),
    "SyncServerlessClient.apps": (f"{PYTHON}::test_the_client_lists_scales_and_rolls_out_apps",),
    "SyncServerlessClient.runners": (f"{PYTHON}::test_the_client_stops_and_kills_runners",),
    "SyncServerlessClient.keys, secrets, environments": (
        f"{PYTHON}::test_the_client_keeps_keys_secrets_and_environments",
    ),
    "SyncServerlessClient.deploy": (f"{PYTHON}::test_the_client_deploys",),
    "fal.sync_dir": (f"{PYTHON}::test_sync_dir_sends_what_changed",),
    "fal.ContainerImage": (f"{SETTINGS}::test_refusals",),
    "fal.workflows, fal.distributed, fal.wma, fal.BillingDeclaration": (
        f"{PYTHON}::test_names_that_are_only_there_to_say_what_to_do",
    ),
}

TOOLKIT_NAMES: Rows = {
    "File": (
        f"{TOOLKIT}::test_files_of_an_answer_can_be_fetched_and_sent_back",
        f"{TOOLKIT}::test_a_reserved_url_leads_nowhere_until_it_is_filled",
        f"{TOOLS}::test_video_audio_and_archives_are_files",
    ),
    "Image": (
        f"{TOOLKIT}::test_files_of_an_answer_can_be_fetched_and_sent_back",
        f"{TOOLS}::test_picture_helpers",
    ),
    "Video, Audio": (f"{TOOLS}::test_video_audio_and_archives_are_files",),
    "CompressedFile": (f"{TOOLS}::test_an_archive_is_extracted",),
    "ImageSizeInput, ImageSize, get_image_size": (
        f"{TOOLS}::test_image_sizes",
        f"{TOOLS}::test_image_sizes_that_there_are_not",
    ),
    "ImageField, FileField, VideoField, AudioField, ImageSizeField": (
        f"{TOOLS}::test_fields_tell_the_playground_what_to_show",
    ),
    "FalBaseModel": (f"{TOOLS}::test_fields_tell_the_playground_what_to_show",),
    "Hidden": (f"{TOOLS}::test_fields_tell_the_playground_what_to_show",),
    "types.FileInput, ImageInput, HttpsUrl, DataUri": (
        f"{TOOLKIT}::test_files_of_an_answer_can_be_fetched_and_sent_back",
        f"{TOOLS}::test_inputs_that_are_refused_at_the_door",
    ),
    "download_file": (f"{TOOLKIT}::test_files_of_an_answer_can_be_fetched_and_sent_back",),
    "download_model_weights": (f"{TOOLKIT}::test_files_of_an_answer_can_be_fetched_and_sent_back",),
    "clone_repository": (f"{TOOLS}::test_a_repository_is_cloned_and_imported",),
    "FAL_PERSISTENT_DIR, FAL_MODEL_WEIGHTS_DIR, FAL_REPOSITORY_DIR": (f"{TOOLS}::test_places",),
    "Repositories": (f"{TOOLS}::test_repositories",),
    "KVStore": (f"{TOOLKIT}::test_two_apps_share_the_folder_and_the_values",),
    "get_gpu_type, load_inductor_cache, sync_inductor_cache, synchronized_inductor_cache": (
        f"{TOOLS}::test_gpu_type_and_inductor_cache",
    ),
    "utils.endpoint.cancel_on_disconnect": (f"{ENDPOINTS}::test_a_caller_who_hangs_up_is_noticed",),
    "utils.retry.retry": (f"{TOOLS}::test_retry",),
    "utils.setup_utils.patch_onnx_runtime": (
        f"{TOOLKIT}::test_onnxruntime_uses_the_threads_it_is_given",
        f"{TOOLS}::test_what_is_only_a_name_and_what_needs_a_package",
    ),
    "image.read_image_from_url, preprocess_image, filter_by": (f"{TOOLS}::test_picture_helpers",),
    "image.safety_checker, image.nsfw_filter": (f"{TOOLKIT}::test_pictures_are_judged",),
    "toolkit.optimize": (f"{TOOLS}::test_what_is_only_a_name_and_what_needs_a_package",),
    "Exceptions": (f"{TOOLS}::test_what_is_only_a_name_and_what_needs_a_package",),
}

COMMANDS: Rows = {
    "fal run": (
        "test_fal_run.py::test_run_curl_interrupt",
        "test_fal_run_here.py::test_local_serves_without_a_platform",
        f"{CLI}::test_create_run_and_its_limit",
    ),
    "fal deploy": (
        f"{CLI}::test_deploy_keeps_a_message_and_annotations",
        f"{CLI}::test_deploy_detached_is_done_later",
        f"{CLI}::test_deploy_check_and_reset_scale",
    ),
    "fal apps list": (f"{CLI}::test_apps_list_sifts_and_sorts",),
    "fal apps list-rev, set-rev, delete-rev, delete": (
        f"{CLI}::test_revisions_back_and_forth_and_gone",
        f"{CLI}::test_delete",
    ),
    "fal apps scale": (f"{CLI}::test_every_scaling_setting",),
    "fal apps rollout": (f"{CLI}::test_rollout_waits_until_the_old_ones_are_gone",),
    "fal apps runners": (f"{CLI}::test_runners_of_an_app_and_what_they_have",),
    "fal apps gpus, fal runners gpus": (f"{CLI}::test_gpus", f"{CARDS}::test_two_cards_for_one_runner_are_counted"),
    "fal runners list, stop, kill": (
        f"{CLI}::test_runners_and_their_logs",
        f"{TENDING}::test_a_runner_is_replaced_before_it_stops_and_killed_when_told_to",
    ),
    "fal runners logs": (f"{CLI}::test_runners_and_their_logs",),
    "fal runners exec -it, shell": (
        f"{TERMINALS}::test_a_terminal_of_its_own",
        f"{TERMINALS}::test_a_shell_and_what_becomes_of_one_whose_window_is_closed",
        f"{TENDING}::test_a_command_beside_a_runner",
    ),
    "fal queue size, flush": (f"{CLI}::test_queue_size_and_flush",),
    "fal secrets set, list, unset": (
        f"{CLI}::test_secrets",
        f"{TENDING}::test_a_staging_app_has_the_secrets_of_staging",
    ),
    "fal keys create, list, revoke": (f"{CLI}::test_scopes_of_keys",),
    "fal environments list, create, delete": (f"{CLI}::test_environments_by_both_names",),
    "fal files ls, download, upload, upload-url, mv, rm": (f"{CLI}::test_files",),
    "fal api": (f"{CLI}::test_api_with_nested_arguments_and_a_stream",),
    "fal profile list, set, unset, key, host, create, delete": (f"{CLI}::test_profiles",),
    "fal doctor, completion, --version, --debug, --pdb, --cprofile": (
        f"{CLI}::test_doctor_completion_version_and_looking_into_the_command",
    ),
    "fal create app": (f"{CLI}::test_create_run_and_its_limit",),
    "fal auth login, logout, whoami": (f"{CLI}::test_commands_that_have_no_meaning_here",),
    "fal account, fal team": (f"{CLI}::test_commands_that_have_no_meaning_here",),
}

#: table -> its rows
TABLES: dict[str, Rows] = {
    "class settings": CLASS_SETTINGS,
    "life cycle": LIFE_CYCLE,
    "endpoints": ENDPOINT_KINDS,
    "errors": ERROR_ANSWERS,
    "OpenAPI": DOCUMENT,
    "files, streams, cancellation": FILES_STREAMS_CANCELS,
    "functions and clients": FUNCTIONS_AND_CLIENTS,
    "toolkit": TOOLKIT_NAMES,
    "command line": COMMANDS,
}
