# SPDX-License-Identifier: Apache-2.0
"""Take each guard out of a copy of the package, and see that the test which is named fails.

    python tools/mutants.py [NAME ...]     all of them without a name; 1 if a mutant survives

A guard that no test misses is no guard. The copy comes before the installed package on the path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    guard: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "an engine that no test has run on is left alone", "engines/gate.py",
        '    if not base and settings.untested == "off":\n', "    if False:\n",
        "tests/test_engine_versions.py::test_whether_it_acts_and_its_one_line",
    ),
    Mutant(
        "the probe of names is asked in a tested version, too", "engines/gate.py",
        "    if missing:\n", "    if missing and not base:\n",
        "tests/test_engine_versions.py::test_whether_it_acts_and_its_one_line",
    ),
    Mutant(
        "only tables of which the command has left a receipt", "cli/tuning.py",
        "if kept.tables and _times(kept).items() - before.items()", "if kept.tables",
        "tests/cli/test_tune.py::test_ranks_that_end_by_themselves",
    ),
    Mutant(
        "a rank that fails ends the others", "cli/tuning.py",
        "            each.add_done_callback(after_failure)\n", "            pass\n",
        "tests/cli/test_tune.py::test_a_rank_that_fails_ends_the_others",
    ),
    Mutant(
        "nothing of a command outlives its rank", "cli/tuning.py",
        "            os.killpg(process.pid, signal.SIGKILL)\n", "            pass\n",
        "tests/cli/test_tune.py::test_what_a_command_has_started_ends_with_it",
    ),
    Mutant(
        "sha256 of the wire body", "coordination/blobs.py",
        "        if digest(body) != sha256:\n", "        if False:\n",
        "tests/ranks/test_rendezvous.py::test_bytes_that_do_not_match_their_sha256_are_refused",
    ),
    Mutant(
        "room for a session's threads beside a search", "runtime/needs.py",
        "lacks_threads(number + 2 * (_THREADS + _THREADS_OF_STORE))", "lacks_threads(number)",
        "tests/tuner/test_probe.py::test_no_search_where_no_process_can_be_started",
    ),
    Mutant(
        "no long goodbye after a loss", "coordination/session_end.py",
        "        if self._has_lost:\n", "        if False:\n",
        "tests/ranks/test_rendezvous.py::"
        "test_after_a_loss_rank_0_waits_for_no_goodbye_longer_than_the_grace_period",
    ),
    Mutant(
        "grace period from when a loss is known", "engines/attempt.py",
        "settings.grace_s - known_for_s", "settings.grace_s",
        "tests/test_attempt.py::test_the_grace_period_begins_when_the_loss_is_known",
    ),
    Mutant(
        "no second silence for rank 0's other store", "engines/readiness.py",
        "            self._link.hurry(_LAST_WORD_S)\n", "",
        "tests/ranks/test_readiness.py::"
        "test_a_process_that_left_its_other_store_unanswered_is_not_waited_for_again",
    ),
    Mutant(
        "compare-and-set", "coordination/kv_client.py",
        'self._ask("compare_set", self.prefix + key, expected, own)',
        '(self._ask("set", self.prefix + key, own), own)[1]',
        "tests/ranks/test_rendezvous.py::test_the_first_record_of_a_step_is_the_only_one",
    ),
    Mutant(
        "a forged value is none", "coordination/seals.py",
        "return value if is_ours else None", "return value or is_ours",
        "tests/protocol/test_seals.py::test_what_is_forged_counts_as_not_there",
    ),
    Mutant(
        "a value belongs to its key", "coordination/seals.py",
        'key.encode() + b"\\0"', 'b"\\0"',
        "tests/protocol/test_seals.py::test_what_is_forged_counts_as_not_there",
    ),
    Mutant(
        "what a stranger took is written again", "coordination/kv_client.py",
        "                self._compare_set(key, kept[key])\n", "                pass\n",
        "tests/protocol/test_seals.py::test_what_is_taken_away_is_written_again",
    ),
    Mutant(
        "only what is asked for is written again", "coordination/kv_client.py",
        "for key in again | missing:", "for key in kept:",
        "tests/protocol/test_seals.py::test_a_value_is_written_again_once_for_a_question",
    ),
    Mutant(
        "a question is heard once", "coordination/seals.py",
        "if number <= self._heard.get(rank, 0):", "if False:",
        "tests/protocol/test_seals.py::test_a_value_is_written_again_once_for_a_question",
    ),
    Mutant(
        "a reader asks as long as it has to", "coordination/seals.py",
        "if now - self._asked < _ASKS_S:", "if self._asks:",
        "tests/protocol/test_seals.py::test_a_value_is_written_again_once_for_a_question",
    ),
    Mutant(
        "strangers ask for nothing", "coordination/kv_client.py",
        "if (question := self.get_now(AGAIN))", "if (question := self.store.get(AGAIN))",
        "tests/protocol/test_seals.py::test_what_strangers_ask_for_is_not_written_again",
    ),
    Mutant(
        "a lost rank is named before strangers are", "coordination/coordinator.py",
        "            self._detector.look(set(others))  # first: without it none goes on\n"
        "            self._withstand()\n",
        "            self._withstand()\n            self._detector.look(set(others))\n",
        "tests/protocol/test_seals.py::"
        "test_a_rank_that_is_lost_is_named_though_strangers_do_not_stop",
    ),
    Mutant(
        "no long goodbye for strangers", "coordination/session_end.py",
        "if self.rank and not self._word:", "if False:",
        "tests/protocol/test_seals.py::"
        "test_a_rank_that_has_seen_a_stranger_is_not_long_at_its_leave",
    ),
    Mutant(
        "strangers that do not stop end the session", "coordination/session_end.py",
        "self._link.seal.lasted_s() > limit_s", "False",
        "tests/protocol/test_seals.py::test_strangers_that_do_not_stop_end_the_session",
    ),
    Mutant(
        "a rank that has left is given up at once", "coordination/failure_detector.py",
        "if not (self._hears and self.link.seal.is_in_force):", "if False:",
        "tests/protocol/test_pulse.py::test_a_rank_that_has_left_is_given_up_at_once",
    ),
    Mutant(
        "a last word that was taken away is waited for", "coordination/failure_detector.py",
        "if not (self._hears and self.link.seal.is_in_force):", "if True:",
        "tests/protocol/test_pulse.py::test_a_last_word_that_a_stranger_has_taken_away_is_waited_for",
    ),
    Mutant(
        "a meeting hears last words", "coordination/coordinator.py",
        "FailureDetector(link, settings, hears=True)", "FailureDetector(link, settings)",
        "tests/protocol/test_seals.py::test_last_words_that_are_taken_away_are_heard",
    ),
    Mutant(
        "who cannot write for strangers leaves all the same", "coordination/session_end.py",
        "        except SessionError:  # strangers write there all the time\n",
        "        except KeyError:\n",
        "tests/protocol/test_seals.py::"
        "test_a_rank_that_cannot_write_for_strangers_leaves_all_the_same",
    ),
    Mutant(
        "a rank says the end that it has heard", "coordination/session_end.py",
        "self._word or said(LOST, Lost(rank, reason, lives=lives))",
        "said(LOST, Lost(rank, reason, lives=lives))",
        "tests/protocol/test_explorer.py::test_a_stranger_at_a_last_word",
    ),
    Mutant(
        "a rank goes on behind what is taken", "coordination/coordinator.py",
        "max(place + 1, int(self._link.get_now(following) or 0))", "place + 1",
        "tests/protocol/test_seals.py::"
        "test_a_rank_that_comes_late_does_not_try_what_others_have_taken",
    ),
    Mutant(
        "an older heartbeat is none", "coordination/failure_detector.py",
        "found.beats < known.beats", "False",
        "tests/protocol/test_pulse.py::test_an_older_heartbeat_that_is_put_back_is_none",
    ),
    Mutant(
        "a try to join ends with the wait for it", "coordination/connecting.py",
        "min(try_s, self._ends - time.monotonic())", "try_s",
        "tests/ranks/test_rendezvous.py"
        "::test_a_store_that_is_stopped_during_the_second_try_is_lost_within_a_silence",
    ),
    Mutant(
        "ranks with other tactics keep no step", "steps/open_decision.py",
        "return not any(p.startswith(_LIMITS) and p not in _TIMES_ONLY for p in differences)",
        "return True or differences",
        "tests/test_decide.py::test_how_far_ranks_share",
    ),
    Mutant(
        "an empty forward beside others' tables", "steps/decisions.py",
        "is_empty=not any(v.asked for v in votes.values())", "is_empty=False",
        "tests/test_decide.py::test_a_forward_that_asks_nothing",
    ),
    Mutant(
        "the time of what serves", "cache/gains.py",
        "return default_ms if entry is None or entry.tactic == -1 else ms", "return ms",
        "tests/cli/test_alike.py::test_diff_tells_winners_and_times",
    ),
    Mutant(
        "the time left counts down", "observability/pace.py",
        "max(as_before, overdue, 0.0)", "max(as_before + since, overdue, 0.0)",
        "tests/test_progress.py::test_the_time_left_counts_down",
    ),
    Mutant(
        "progress is the first rank's of a node", "steps/open_session.py",
        "progress.files(options.settings.progress_file if rank in opened.writers else None)",
        "pass",
        "tests/ranks/test_modes.py::test_a_node_without_a_local_rank_0_is_told_of",
    ),
    Mutant(
        "a forward takes no arguments", "steps/options.py",
        "        signature.bind()\n", "        pass\n",
        "tests/test_options.py::test_a_forward_is_called_without_arguments",
    ),
    Mutant(
        "several ranks have a group", "steps/options.py",
        "self.link is None and not size:", "self.link is None and size < 0:",
        "tests/test_options.py::test_ranks_of_a_job_that_has_not_begun",
    ),
    Mutant(
        "an offer counts when all can use it", "coordination/opening.py",
        "usable[:1] == [True]", "usable[:1]",
        "tests/ranks/test_opening.py::test_whatever_is_blocked_all_ranks_end_alike",
    ),
    Mutant(
        "the nonce of a store", "coordination/opening.py",
        'decode(errors="replace") != self._nonce', 'decode(errors="replace") == ""',
        "tests/ranks/test_rendezvous.py::test_a_port_where_another_store_answers_is_refused",
    ),
    Mutant(
        "one interface", "coordination/listeners.py",
        "listener.bind((host, 0))", 'listener.bind(("", 0))',
        "tests/ranks/test_opening.py::test_on_one_machine_it_listens_on_the_loopback_interface_alone",
    ),
    Mutant(
        "fsync order", "cache/files.py",
        "        if synced:\n            os.fsync(file.fileno())\n", "",
        "tests/test_store.py::test_the_file_is_on_disk_before_its_name",
    ),
    Mutant(
        "generation rule", "cache/merge.py",
        "return part.manifest is None, -part.generation, part.source",
        "return part.manifest is None, part.generation, part.source",
        "tests/test_merge.py::test_higher_generation_wins",
    ),
    Mutant(
        "foreign check", "cache/reader.py",
        "    if conflicts:\n", "    if False:\n",
        "tests/test_store.py::test_bad_table_is_set_aside",
    ),
    Mutant(
        "manifest's sha256", "cache/reader.py",
        "    if manifest.table_sha256 != sha256:\n", "    if False:\n",
        "tests/test_store.py::test_bad_manifest",
    ),
    Mutant(
        "size limit", "cache/files.py",
        "        if status.st_size > limit:\n", "        if False:\n",
        "tests/test_store.py::test_bad_table_is_set_aside",
    ),
    Mutant(
        "symlink check", "cache/files.py",
        "    if not is_inside(place, root):\n", "    if False:\n",
        "tests/test_store.py::test_no_link_is_followed_out_of_the_root",
    ),
    Mutant(
        "batch in a key", "tuner/recorder.py",
        "name_fields(real, own, fields.batch)", "name_fields(real, own)",
        "tests/tuner/test_survey.py"
        "::test_a_key_with_the_raw_batch_is_stored_as_flashinfer_stores_it",
    ),
    Mutant(
        "order of runners", "tuner/task.py",
        "sorted([name, extras.neutral] for name, extras in runners)",
        "[[name, extras.neutral] for name, extras in runners]",
        "tests/tuner/test_task.py::test_the_order_of_the_runners_is_no_part_of_an_id",
    ),
    Mutant(
        "failures are no facts", "planning/merge_results.py",
        "result.kind not in LASTING or is_unshared", "is_unshared",
        "tests/test_settle.py::test_what_says_nothing_of_the_task_is_not_recorded",
    ),
    Mutant(
        "a tactic out of memory", "tuner/counters.py",
        "if seen._is_replaying and isinstance(error, OUT_OF_MEMORY):", "if False:",
        "tests/tuner/test_survey.py::test_a_tactic_out_of_memory_costs_itself_only",
    ),
    Mutant(
        "blocklist", "tuner/build.py",
        "    if compat.is_blocked(tuner, call.op, runner, entry.tactic):\n", "    if False:\n",
        "tests/tuner/test_survey.py::test_a_blocked_tactic_is_not_taken_over",
    ),
    Mutant(
        "weights by storage", "tuner/capture.py",
        "return _place(tensor) in self._weights", "return False",
        "tests/tuner/test_capture.py::test_a_weight_is_known_by_its_storage",
    ),
    Mutant(
        "ranks that differ", "steps/decisions.py",
        "differ=_differ(votes)", "differ=[]",
        "tests/test_decide.py::test_tasks_that_ranks_serve_differently_are_named",
    ),
    Mutant(
        "pass-through list", "tuner/survey.py",
        "        if reason := self._ops.pass_through.get(op):\n            return reason\n", "",
        "tests/tuner/test_survey.py"
        "::test_listed_ops_and_holders_of_a_process_group_are_passed_through",
    ),
    Mutant(
        "process group unset", "tuner/compat.py",
        "    fi.set_autotune_process_group(None)\n", "    pass\n",
        "tests/tuner/test_replay.py::test_one_context_at_a_time_and_no_process_group",
    ),
    Mutant(
        "FlashInfer's own profiles", "tuner/profiles.py",
        "= found == _counted(config, shapes)", "= True",
        "tests/tuner/test_profiles.py::test_a_flashinfer_that_counts_otherwise_is_believed",
    ),
    Mutant(
        "twin allow-list", "tuner/known_ops.py",
        "    fields = ops.twin_fields.get(op, {})\n",
        "    fields = dict(enumerate(['ep_rank'] * 9))\n",
        "tests/tuner/test_known_ops.py::test_only_listed_fields_make_twins",
    ),
    Mutant(
        "certificate", "steps/decisions.py",
        "    if deviates:\n", "    if False:\n",
        "tests/test_decide.py::test_ranks_that_deviate_are_named_and_all_serve_defaults",
    ),
    Mutant(
        "archive's file types", "cache/archive.py",
        "    if member.type != tarfile.REGTYPE or member.issparse():\n", "    if False:\n",
        "tests/cli/test_carrying.py::test_a_hostile_archive_writes_nothing",
    ),
    Mutant(
        "archive's names", "cache/archive.py",
        "        if match is None:\n", "        if match is None and not row.path:\n",
        "tests/cli/test_carrying.py::test_a_hostile_archive_writes_nothing",
    ),
    Mutant(
        "archive's sha256", "cache/archive.py",
        "        if len(data) != row.bytes or digest(data) != row.sha256:\n",
        "        if False:\n",
        "tests/cli/test_carrying.py::test_another_listing_another_digest_another_size",
    ),
    Mutant(
        "unpack's links", "cli/commands/unpack.py",
        "            if not is_inside(home, target.path):\n", "            if False:\n",
        "tests/cli/test_carrying.py::test_no_link_is_followed_out_of_the_root",
    ),
    Mutant(
        "prune's tables in use", "cli/in_use.py",
        '    if seen in ("runs", "stopped"):\n', "    if False:\n",
        "tests/cli/test_keeping.py::test_prune_never_takes_what_is_in_use",
    ),
    Mutant(
        "require-complete", "steps/require_complete.py",
        "    if not missing:\n", "    if missing or not missing:\n",
        "tests/ranks/test_modes.py::test_a_start_without_a_table_is_refused_on_every_rank",
    ),
    Mutant(
        "law of lost ranks", "steps/fallback.py",
        "    Failure.RANK_LOST: Way.END,\n", "    Failure.RANK_LOST: Way.AS_WITHOUT,\n",
        "tests/test_fallback.py::test_a_lost_rank_is_never_fallen_back_from_and_nobody_else_ends_a_job",
    ),
    Mutant(
        "end after a loss", "engines/attempt.py",
        "        timer.start()\n", "        pass\n",
        "tests/test_attempt.py"
        "::test_a_process_that_has_lost_a_rank_ends_whatever_becomes_of_the_exception",
    ),
    Mutant(
        "votes' fields", "coordination/rounds.py",
        "class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):",
        "class Vote(msgspec.Struct, frozen=True, kw_only=True):",
        "tests/test_votes.py::test_a_vote_that_is_none_of_its_round",
    ),
    Mutant(
        "a default that is refused", "tuner/replay.py",
        "    if not is_accepted and len(call.runners) > 1:\n", "    if False:\n",
        "tests/tuner/test_random_ops.py::test_what_was_found_once",
    ),
    Mutant(
        "variables of the ranks are compared", "cli/doctor_ranks.py",
        "found.items() ^ variables[0].items()", "set[tuple[str, str]]()",
        "tests/cli/test_doctor_ranks.py"
        "::test_variables_that_differ_are_named_without_their_values",
    ),
    Mutant(
        "an address that is not reached is told", "cli/doctor_ranks.py",
        "for rank, fault in asked.items() if fault", "for rank, fault in asked.items() if False",
        "tests/hosts/test_doctor_on_hosts.py::test_a_card_that_leads_nowhere",
    ),
    Mutant(
        "cold steps are imported while programs run", "steps/open_session.py",
        "    if lookup.is_slow:\n", "    if False:\n",
        "tests/tuner/test_kept_environment.py::test_a_start_is_spared_the_look_of_the_one_before",
    ),
    Mutant(
        "a rank lost as another comes is named with its host", "engines/readiness.py",
        "            error.name_host(self._link.leader)\n", "            pass\n",
        "tests/ranks/test_readiness.py::"
        "test_a_store_that_goes_as_a_rank_comes_is_named_with_its_host",
    ),
    Mutant(
        "a store that does not answer is not asked once more", "coordination/session_end.py",
        "        if misses_store:\n", "        if False:\n",
        "tests/protocol/test_pulse.py::"
        "test_a_store_that_is_stopped_as_the_forward_begins_is_waited_for_once",
    ),
    Mutant(
        "a thread that does not come back is not waited for", "coordination/connecting.py",
        "part(maker, limit_s=_HANG_UP_S)", "part(maker)",
        "tests/ranks/test_parting.py::test_a_thread_that_does_not_come_back_is_not_waited_for",
    ),
    Mutant(
        "rank 0's look begins before the identity is made", "engines/attempt.py",
        "        greeting = begin_look(settings, scope.rank, tells=scope.size > 1, **roots())\n",
        '        greeting = ""\n',
        "tests/test_attempt.py::test_rank_0_begins_the_look_that_all_wait_for_before_all_else",
    ),
    Mutant(
        "the others get ready where programs are run", "engines/attempt.py",
        "        if scope.rank and environment_stamp.look_round():\n", "        if scope.rank:\n",
        "tests/test_attempt.py::test_the_other_ranks_get_ready_meanwhile_for_what_follows_it",
    ),
    Mutant(
        "standard streams are held before an engine's ranks meet", "engines/attempt.py",
        "        hold_standard_streams()  #", "        #",
        "tests/test_streams.py::test_nothing_precedes_that_in_an_engine",
    ),
    Mutant(
        "runners of one class with keys of other forms", "tuner/batch_fields.py",
        "key = op, _Kind(name, switches, _form(real))", "key = op, _Kind(name, switches, ())",
        "tests/tuner/test_random_ops.py::test_what_was_found_once",
    ),
    Mutant(
        "an entry of more elements than are known", "tuner/behaviour.py",
        "        if len(value) > _MOST_ELEMENTS:\n", "        if False:\n",
        "tests/release/test_patched.py"
        "::test_what_no_release_does_is_told_apart[an entry of five elements]",
    ),
    Mutant(
        "keys are those that this package makes", "tuner/behaviour.py",
        "        if found != expected:\n", "        if False:\n",
        "tests/release/test_patched.py"
        "::test_what_no_release_does_is_told_apart[another field in the key]",
    ),
    Mutant(
        "ranks meet nowhere that is relied upon", "tuner/behaviour.py",
        "    with compat.group_that_fails():\n", "    with compat.no_process_group():\n",
        "tests/release/test_patched.py"
        "::test_what_no_release_does_is_told_apart[another vote]",
    ),
    Mutant(
        "no other method measures", "tuner/behaviour.py",
        "compat.measuring_methods() - _MEASURING", "set()",
        "tests/release/test_patched.py"
        "::test_what_no_release_does_is_told_apart[choose_one hands on]",
    ),
    Mutant(
        "a context has no other options", "tuner/behaviour.py",
        "    if len(found) > len(compat.OVERRIDES):\n", "    if False:\n",
        "tests/release/test_patched.py"
        "::test_what_no_release_does_is_told_apart[five options]",
    ),
    Mutant(
        "an identity is made of what packages hold", "steps/open_decision.py",
        "_with_stamp(vote, by_content(stamp)) if PACKAGES in stamp else vote", "vote",
        "tests/release/test_environments.py"
        "::test_the_same_packages_elsewhere_are_one_identity_with_one_table",
    ),
    Mutant(
        "the embedded engine's own file is of equal packages", "engines/embedded/parallel.py",
        '    if by_content(document["_metadata"]) == by_content(stamp):\n', "    if True:\n",
        "tests/test_embedded_model.py::test_its_file_serves_equal_packages_at_another_path",
    ),
    Mutant(
        "another content is another package", "tuner/packages.py",
        "            digest = content_digest(record)\n", "            digest = ''\n",
        "tests/release/test_environments.py"
        "::test_another_content_of_the_same_version_is_another_identity",
    ),
    Mutant(
        "a package's name that goes on in the next line", "tuner/package_names.py",
        "\\n(?![ \\t])", "\\n",
        "tests/tuner/test_package_names.py::test_the_answers_are_the_same",
    ),
    Mutant(
        "names are read quickly for the asking thread alone", "tuner/package_names.py",
        " if _packages.is_used_here() else found", "",
        "tests/tuner/test_package_names.py::test_no_other_thread_hears_of_it",
    ),
    Mutant(
        "names are read without a parser", "tuner/package_names.py",
        "return map(_Package, found) if", "return found if",
        "tests/tuner/test_package_names.py::test_a_name_takes_no_parser",
    ),
    Mutant(
        "a stand-in stays for a second user", "runtime/stand_in.py",
        "                if not self._threads:\n                    setattr",
        "                if True:\n                    setattr",
        "tests/tuner/test_probe.py::test_a_search_that_cannot_be_made_finds_nothing",
    ),
    Mutant(
        "a server is asked through no proxy", "runtime/health_page.py",
        "ProxyHandler({})", "ProxyHandler()",
        "tests/test_health_page.py::test_a_proxy_of_the_environment_is_not_asked",
    ),
    Mutant(
        "what is kept is looked up later", "tuner/environment_stamp.py",
        "        ends.wait(_LATER_S)\n", "        pass\n",
        "tests/tuner/test_kept_environment.py::"
        "test_what_is_kept_is_looked_up_after_the_start_or_as_the_process_ends",
    ),
    Mutant(
        "a warm start imports no cold step", "steps/open_session.py",
        "    if lookup.is_slow:\n", "    if True:\n",
        "tests/tuner/test_kept_environment.py::test_a_start_is_spared_the_look_of_the_one_before",
    ),
    Mutant(
        "a start that finds no journal imports nothing for it", "steps/read.py",
        "    if not store.has_journals:\n", "    if False:\n",
        "tests/tuner/test_warm_imports.py::"
        "test_the_second_has_imported_no_module_of_a_cold_start",
    ),
    Mutant(
        "tasks of each rank are compared by file keys", "steps/certify.py",
        "(task.id, *(digest(key.encode())[:_NAME_DIGITS] for key in task.keys))", "(task.id,)",
        "tests/tuner/test_survey.py::test_two_runner_lists_on_two_ranks_share_nothing",
    ),
    Mutant(
        "a field of a vote", "coordination/votes.py",
        "    leaves: str\n", '    leaves: str = ""\n',
        "tests/test_votes.py::test_each_field_that_is_missing_is_named",
    ),
    Mutant(
        "a field of a rank's row", "coordination/votes.py",
        "    winners: list[Winner]\n", "    winners: list[Winner] = []\n",
        "tests/test_votes.py::test_each_field_that_is_missing_further_down_is_named",
    ),
    Mutant(
        "a vote's factors", "steps/open_decision.py",
        "_identity_of(rank, {**vote.factors", "Identity({**vote.factors",
        "tests/test_decide.py::test_factors_that_are_none_are_named_with_their_rank",
    ),
    Mutant(
        "the version of a vote", "coordination/messages.py",
        "(reason := other_version(head.plugin)):\n        raise VoteError(rank",
        "not (reason := other_version(head.plugin)):\n        raise VoteError(rank",
        "tests/test_votes.py::test_a_vote_arrives_as_it_was_handed_in",
    ),
    Mutant(
        "a vote's step", "coordination/messages.py",
        "    if head.step not in (None, held.name):\n        raise VoteError(rank",
        "    if head.step == 0:\n        raise VoteError(rank",
        "tests/ranks/test_rendezvous.py"
        "::test_the_word_or_record_of_another_step_is_told_on_every_rank",
    ),
    Mutant(
        "who lives and leaves", "coordination/session_end.py",
        "    if found.lives:\n", "    if False:\n",
        "tests/ranks/test_rendezvous.py::test_a_rank_that_lives_and_leaves_is_not_lost",
    ),
    Mutant(
        "watch before the session", "engines/presence.py",
        "        if silent_s > silence_s:\n", "        if False:\n",
        "tests/ranks/test_readiness.py::test_a_rank_that_is_lost_before_its_word_is_named",
    ),
    Mutant(
        "certified with a rank that leaves", "steps/decisions.py",
        "    if leaving:\n", "    if False:\n",
        "tests/test_decide.py::test_a_rank_that_has_been_told_to_end_ends_the_job",
    ),
    Mutant(
        "page's text", "cli/report_charts.py",
        "[[html.escape(row[1]), row[3]] for row in rows]", "[[row[1], row[3]] for row in rows]",
        "tests/cli/test_page.py::test_text_from_files_is_escaped",
    ),
    Mutant(
        "figures of the dead", "observability/gauges.py",
        "            if _is_left(path) and _is_ours(path):\n", "            if False:\n",
        "tests/test_gauges.py::test_the_next_start_takes_the_place_of_the_last",
    ),
    Mutant(
        "figures of the living", "observability/gauges.py",
        "if _is_left(path) and _is_ours(path):", "if _is_ours(path):",
        "tests/test_gauges.py::test_files_of_the_living_stay",
    ),
    Mutant(
        "figures of others", "observability/gauges.py",
        "if _is_left(path) and _is_ours(path):", "if _is_left(path):",
        "tests/test_gauges.py::test_files_of_others_stay",
    ),
    Mutant(
        "figures of an earlier id", "observability/gauges.py",
        "    if int(pid) == os.getpid():\n        return True\n", "",
        "tests/test_gauges.py::test_a_file_of_an_earlier_process_of_ones_id_goes",
    ),
    Mutant(
        "no pid among the labels", "observability/gauges.py",
        "multiprocess_mode=MODE", 'multiprocess_mode="all"',
        "tests/test_gauges.py::test_the_same_series_as_in_the_file",
    ),
    Mutant(
        "what no longer runs", "observability/gauges.py",
        "    _outdate(samples)\n", "",
        "tests/test_gauges.py::test_a_second_session_stands_beside_the_first",
    ),
    Mutant(
        "figures that are lost", "observability/gauges.py",
        "    if not own.exists():\n", "    if False:\n",
        "tests/test_gauges.py::test_a_library_that_was_imported_too_early_is_told_of",
    ),
    Mutant(
        "room for a figure", "observability/gauges.py",
        "    if free < LEAST_FREE:\n", "    if False:\n",
        "tests/test_gauges.py::test_what_is_in_the_way_is_a_reason",
    ),
    Mutant(
        "figures of failures", "steps/open_session.py",
        "    figures.fail()\n", "",
        "tests/ranks/test_modes.py::test_a_probe_and_an_exporter_find_their_files",
    ),
    Mutant(
        "who tells figures", "observability/exposition.py",
        "        if not self._is_first or (", "        if (",
        "tests/test_exposition.py::test_states",
    ),
    Mutant(
        "ops left to themselves", "tuner/survey.py",
        "        with self._passing():\n", "        with contextlib.nullcontext():\n",
        "tests/ranks/test_modes.py::test_ops_left_to_themselves_make_no_warm_start_cold",
    ),
    Mutant(
        "bundle's digest", "fleet/pull.py",
        "    if digest(data) != pointer.bundle:\n", "    if False:\n",
        "tests/fleet/test_faults.py::test_the_start_is_as_without_it[cut off]",
    ),
    Mutant(
        "bundle's identity", "fleet/bundle.py",
        "        if (file.version, file.arch, file.identity) != tuple(whose):\n",
        "        if False:\n",
        "tests/fleet/test_faults.py::test_the_start_is_as_without_it[another identity's]",
    ),
    Mutant(
        "bundle's contents", "fleet/bundle.py",
        '    if fault := next(faults, ""):\n', '    if fault := "":\n',
        "tests/fleet/test_faults.py::test_the_start_is_as_without_it[unlike]",
    ),
    Mutant(
        "pointer's condition", "fleet/objects.py",
        '        return self._put(base, data, {"e_tag": seen.tag})\n',
        '        return self._put(base, data, "overwrite")\n',
        "tests/fleet/test_publishing.py::test_every_reader_sees_a_whole_bundle_and_the_last_holds_all",
    ),
    Mutant(
        "a folder's free number", "fleet/objects.py",
        "            if max(numbers, default=0) > last + _KEPT:\n", "            if False:\n",
        "tests/fleet/test_publishing.py::test_a_folders_number_that_was_free_again_is_not_taken",
    ),
    Mutant(
        "an idle process ends with its engine", "fleet/answering.py",
        "    while os.getppid() == parent and time", "    while time",
        "tests/fleet/test_waiting.py::test_it_ends_with_its_engine_though_a_child_lives[pipe]",
    ),
    Mutant(
        "an idle process does not ask who its parent is by then", "fleet/client.py",
        ".main(int(sys.argv[2]))", ".main(__import__('os').getppid())",
        "tests/fleet/test_waiting.py::test_it_ends_where_its_engine_has_ended_before_it_was_up",
    ),
    Mutant(
        "an idle process ends", "fleet/answering.py",
        " and time.monotonic() < until:\n", ":\n",
        "tests/fleet/test_waiting.py::test_it_waits_for_an_hour_and_no_longer",
    ),
    Mutant(
        "a forked child lets go of its parent's process", "fleet/waiting.py",
        "os.register_at_fork(after_in_child=_forget)\n", "",
        "tests/fleet/test_waiting.py::test_a_forked_child_ends_nothing_of_its_parents",
    ),
    Mutant(
        "the credentials of the moment", "fleet/answering.py",
        "        _take_up(request.environ)\n        tell", "        tell",
        "tests/fleet/test_waiting.py::test_it_asks_with_the_environment_of_the_moment",
    ),
    Mutant(
        "other credentials read anew", "fleet/worker.py",
        "or _is_other(request):", "or False:",
        "tests/fleet/test_ahead.py::test_other_credentials_ask_anew[AWS_SECRET_ACCESS_KEY-again0]",
    ),
    Mutant(
        "what is incomplete is asked for again", "fleet/worker.py",
        "return found if is_complete or", "return found if True or",
        "tests/fleet/test_ahead.py::test_what_was_absent_is_asked_for_again",
    ),
    Mutant(
        "a bundle is passed over though it is there", "fleet/pull.py",
        "        pointer = _pointer(seen, whose, refuse)\n        if isinstance(pointer, Miss):\n"
        "            state",
        "        pointer = _pointer(seen, whose, take_all if ahead else refuse)\n"
        "        if isinstance(pointer, Miss):\n            state",
        "tests/fleet/test_ahead.py::test_a_bundle_that_is_passed_over_is_not_placed",
    ),
    Mutant(
        "announcements that nobody reads", "fleet/client.py",
        "if self._announced + len(line) > _MOST_AHEAD:", "if len(line) > _MOST_AHEAD:",
        "tests/fleet/test_ahead.py::test_announcements_never_fill_the_pipe",
    ),
    Mutant(
        "a process that has ended is not asked", "fleet/waiting.py",
        "    if worker.waits:\n", "    if True:\n",
        "tests/fleet/test_waiting.py::test_one_that_has_ended_is_no_use",
    ),
    Mutant(
        "a clock that is off", "fleet/objects.py",
        "        if any(word in str(error) for word in _OFF_CLOCK):\n", "        if False:\n",
        "tests/fleet/test_faults.py::test_the_start_is_as_without_it[a clock a day off]",
    ),
    Mutant(
        "keys that are allowed", "fleet/signing.py",
        "            return False\n        try:\n", "            return True\n        try:\n",
        "tests/fleet/test_faults.py::test_the_start_is_as_without_it[a stranger's]",
    ),
    Mutant(
        "a lease's silence", "fleet/lease.py",
        "and now - self._since >= MISSED * beat_s", "and now - self._since >= 0",
        "tests/fleet/test_lease.py::test_a_holder_that_renews_it_is_waited_for",
    ),
    Mutant(
        "a clock that jumps", "fleet/lease.py",
        "return self._looks >= _LOOKS and now", "return now",
        "tests/fleet/test_lease.py::test_a_clock_that_jumps_is_no_silence",
    ),
    Mutant(
        "a fault is no silence", "fleet/single_flight.py",
        "            watch.begin_anew()\n            now", "            now",
        "tests/fleet/test_lease.py::test_a_store_that_fails_for_a_while_is_asked_again",
    ),
    Mutant(
        "thousands of hosts look more rarely", "fleet/single_flight.py",
        "return max(self.beat_s, _RARER * (self.watch.clock() - self._began))",
        "return self.beat_s",
        "tests/fleet/test_lease.py::test_a_long_wait_is_looked_at_ever_more_rarely",
    ),
    Mutant(
        "a dead holder is looked at by the beat", "fleet/single_flight.py",
        "        if self.watch.stands_still:\n            return self.beat_s\n", "",
        "tests/fleet/test_lease.py::test_a_long_wait_is_looked_at_ever_more_rarely",
    ),
    Mutant(
        "a table before the lease", "fleet/single_flight.py",
        "            if found := self._bundle():\n                return found\n", "",
        "tests/fleet/test_lease.py::test_a_table_that_is_published_is_adopted_when_the_lease_is_freed",
    ),
    Mutant(
        "no line for what fails", "fleet/single_flight.py",
        "asked.tasks and asked.tasks <= {*lease.failed}", "False",
        "tests/fleet/test_lease.py::test_no_host_waits_in_line_for_what_fails",
    ),
    Mutant(
        "known to have no winner", "steps/single_flight.py",
        "return found | (held.keys() & set(known_defaults(manifest) if manifest else ()))",
        "return found",
        "tests/fleet/test_single_flight.py::test_a_task_without_a_winner_is_answered_as_well",
    ),
    Mutant(
        "whose lease is freed", "fleet/single_flight.py",
        "        return isinstance(lease, Lease) and lease.token == self._token\n",
        "        return isinstance(lease, Lease)\n",
        "tests/fleet/test_lease.py::test_one_host_takes_it_renews_it_and_frees_it",
    ),
    Mutant(
        "a lease for an engine that runs", "fleet/worker.py",
        "        if _runs(request):\n", "        if True:\n",
        "tests/fleet/test_turn_process.py::test_a_stopped_engine_loses_it_and_goes_on",
    ),
    Mutant(
        "a lease is freed with its engine", "fleet/worker.py",
        "    finally:\n        turn.free()\n", "    finally:\n        pass\n",
        "tests/fleet/test_turn_process.py::test_the_lease_of_an_engine_that_is_killed_is_freed",
    ),
    Mutant(
        "the wait for another host", "steps/fleet_turn.py",
        "            elif is_heard and time.monotonic() > until:\n", "            elif False:\n",
        "tests/fleet/test_single_flight.py::test_the_wait_is_bounded",
    ),
    Mutant(
        "who may hold a lease", "steps/fleet.py",
        'may_hold = settings.fleet_role == "write" and job.may_write', "may_hold = job.may_write",
        "tests/fleet/test_single_flight.py::test_a_reader_waits_for_a_host_that_tunes",
    ),
    Mutant(
        "a bundle that ends its starts", "fleet/quarantine.py",
        "        if note.deaths + 1 >= MOST_DEATHS\n", "        if False\n",
        "tests/fleet/test_notes.py::test_two_starts_that_died_one_after_the_other",
    ),
    Mutant(
        "side by side is one start", "fleet/quarantine.py",
        "note.deaths + 1 >= MOST_DEATHS", "len([*_dead(folder, driver)]) >= MOST_DEATHS",
        "tests/fleet/test_notes.py::test_processes_that_ran_side_by_side_are_one_start",
    ),
    Mutant(
        "whose deaths count", "fleet/quarantine.py",
        "is_ours = note.boot == boot_id() or note.host == host_name()", "is_ours = True",
        "tests/fleet/test_notes.py::test_whose_deaths_count[another host]",
    ),
    Mutant(
        "a certified start's note", "steps/fleet.py",
        "        self.has_served()\n        turn = ", "        turn = ",
        "tests/fleet/test_quarantine.py::test_what_is_no_death_by_a_bundle",
    ),
    Mutant(
        "a failure that is no bundle's", "steps/fleet.py",
        "        if job.trace.is_settled or not may_be:\n", "        if job.trace.is_settled:\n",
        "tests/fleet/test_quarantine.py::test_what_is_no_death_by_a_bundle",
    ),
    Mutant(
        "a table that owes nothing to a bundle", "fleet/quarantine.py",
        "return not others or any(is_owed(*item) for item in part.table.entries.items())",
        "return True",
        "tests/fleet/test_quarantine.py"
        "::test_a_table_of_this_host_that_is_newer_owes_nothing_to_the_bundle",
    ),
    Mutant(
        "what is passed over is not kept either", "steps/fleet.py",
        "client.kept_directory(directory, self._passed_over)",
        "client.kept_directory(directory, ())",
        "tests/fleet/test_quarantine.py"
        "::test_it_is_tried_again_when_that_is_lifted_and_by_every_other_host",
    ),
    Mutant(
        "what loses is not published", "steps/fleet.py",
        "        if slower := sum(row.is_slower for row in self.checks):\n",
        "        if slower := 0:\n",
        "tests/fleet/test_spot_check.py::test_what_loses_is_told_and_not_published[2]",
    ),
    Mutant(
        "a check is no tuning", "tuner/spot_check.py",
        "compat.no_bars(), seen.uncounted(),", "compat.no_bars(),",
        "tests/fleet/test_spot_check.py::test_what_loses_is_told_and_not_published[2]",
    ),
    Mutant(
        "a check that fails", "steps/spot_check.py",
        "    except Exception as error:", "    except KeyError as error:",
        "tests/fleet/test_spot_check.py::test_what_cannot_be_timed_costs_nothing[serving]",
    ),
    Mutant(
        "a check's bound", "steps/spot_check.py",
        "time.monotonic() < until and ", "",
        "tests/fleet/test_spot_check.py::test_what_cannot_be_timed_costs_nothing[impatient]",
    ),
    Mutant(
        "a lost answer's token", "fleet/push.py",
        "return isinstance(found, Pointer) and found.token == pointer.token", "return False",
        "tests/fleet/test_publishing.py::test_a_pointer_whose_answer_was_lost_is_known_again",
    ),
    Mutant(
        "the fleet's bound", "fleet/client.py",
        "timeout=max(limit_s, 0.001)", "timeout=None",
        "tests/fleet/test_client.py::test_a_process_that_does_not_answer_is_ended",
    ),
    Mutant(
        "an engine that has ended", "fleet/worker.py",
        "request.after_s))\n        if os.getppid() != request.parent:\n",
        "request.after_s))\n        if False:\n",
        "tests/fleet/test_starts.py::test_an_engine_that_ends_before_it_serves_publishes_nothing",
    ),
    Mutant(
        "certified before published", "steps/fleet.py",
        '        if agreement != "certified":\n', "        if False:\n",
        "tests/fleet/test_starts.py::test_nothing_is_published_that_the_ranks_have_not_certified",
    ),
    Mutant(
        "credentials that nobody gave", "fleet/location.py",
        '    if not sets or credentials != "given":\n', "    if True:\n",
        "tests/fleet/test_location.py::test_only_credentials_that_were_given",
    ),
    Mutant(
        "who has signed", "fleet/signing.py",
        "binascii.Error, ValueError):\n            return False\n",
        "binascii.Error, ValueError):\n            return True\n",
        "tests/fleet/test_signing.py::test_a_bundle_is_used_if_a_key_that_is_allowed_has_signed_it",
    ),
    Mutant(
        "what a signature is for", "fleet/push.py",
        "    if why := refuse(pointer, whose):\n", '    if why := "":\n',
        "tests/fleet/test_signing.py::test_who_signs_takes_over_nothing_that_nobody_allowed_has_signed",
    ),
    Mutant(
        "what a layer unfolds to", "cache/image.py",
        "            if size > limit:\n", "            if False:\n",
        "tests/cli/test_hostile_images.py::test_a_hostile_image_writes_nothing[bomb]",
    ),
    Mutant(
        "a blob's digest", "cache/image.py",
        "    if blob(data).digest != named.digest:\n", "    if False:\n",
        "tests/cli/test_registry_faults.py::test_what_is_wrong_is_one_line[other bytes]",
    ),
    Mutant(
        "the config's layer", "cache/image.py",
        "        if config.rootfs.diff_ids != [found]:\n", "        if False:\n",
        "tests/cli/test_hostile_images.py::test_a_hostile_image_writes_nothing[another layer]",
    ),
    Mutant(
        "folders above a file, no others", "cache/archive.py",
        'return member.isdir() and name.startswith(f"{member.name}/")', "return member.isdir()",
        "tests/cli/test_hostile_images.py::test_a_hostile_image_writes_nothing[another folder]",
    ),
    Mutant(
        "one image in a layout", "cache/image_layout.py",
        "    if len(index.manifests) != 1:\n", "    if not index.manifests:\n",
        "tests/cli/test_hostile_images.py::test_a_broken_layout_writes_nothing[two images]",
    ),
    Mutant(
        "the digest asked for", "fleet/registry.py",
        '    if request.reference.digest not in ("", manifest.digest):\n', "    if False:\n",
        "tests/cli/test_registry_faults.py::test_another_image_than_the_digest_asked_for",
    ),
    Mutant(
        "what a registry sends at most", "fleet/registry.py",
        "            if len(found) > limit:\n", "            if False:\n",
        "tests/cli/test_registry_faults.py::test_what_is_wrong_is_one_line[longer]",
    ),
    Mutant(
        "a registry is asked once", "fleet/registry.py",
        "Registry.do_request.__wrapped__(self", "Registry.do_request(self",
        "tests/cli/test_registry_faults.py::test_what_is_wrong_is_one_line[401]",
    ),
    Mutant(
        "a token of another request", "fleet/registry.py",
        "                self.auth.token = None", "                pass",
        "tests/cli/test_registry_tokens.py::test_a_token_for_reading_is_none_for_writing",
    ),
    Mutant(
        "no password by http", "fleet/registry.py",
        "adapter if request.is_plain else _Refused()", "adapter",
        "tests/cli/test_registry_tokens.py::test_a_token_goes_nowhere_by_http",
    ),
    Mutant(
        "no password of a netrc", "fleet/registry.py",
        "        session.auth = lambda request: request", "        pass",
        "tests/cli/test_registry_tokens.py::test_a_netrc_is_not_asked",
    ),
    Mutant(
        "a race drops by the noise", "tuner/race/rules.py",
        "_OUT = (3.0, 2.5, 2.0)", "_OUT = (0.0, 0.0, 0.0)",
        "tests/tuner/test_race_rules.py::test_a_candidate_drops_only_beyond_the_noise",
    ),
    Mutant(
        "others in the finals", "tuner/race/rules.py",
        "_FINALISTS, _LEAST = 8, 4", "_FINALISTS, _LEAST = 8, 2",
        "tests/tuner/test_race_rules.py::test_at_least_two_others_and_each_default_never_drop",
    ),
    Mutant(
        "ties by order", "tuner/race/rules.py",
        "for place in sorted(alive) if medians[place] <= limit", "for place in [fastest]",
        "tests/tuner/test_race_rules.py::test_ties_go_to_the_first_and_are_told",
    ),
    Mutant(
        "counts given back", "tuner/compat.py",
        "        for name, value in before.items():\n            setattr(tuner, name, value)\n",
        "        pass\n",
        "tests/tuner/test_rounds.py::test_an_interrupt_leaves_the_counts",
    ),
    Mutant(
        "round 1 is no choice", "tuner/measurement.py",
        "    compat.forget_since(tuner, stored)\n    if not", "    if not",
        "tests/tuner/test_rounds.py::test_what_is_raced_and_what_is_swept",
    ),
    Mutant(
        "a winner must be offered again", "tuner/race/rounds.py",
        "    return bool(offered) or won.tactic == DEFAULT", "    return True",
        "tests/tuner/test_rounds.py::test_other_candidates_each_time_are_swept",
    ),
    Mutant(
        "builds of one version are told apart", "coordination/versions.py",
        "    if version == BUILD:\n", '    if str(version).partition(" ")[0] == __version__:\n',
        "tests/test_votes.py::test_a_vote_that_is_none_of_its_round",
    ),
    Mutant(
        "an older build is told why", "coordination/versions.py",
        'store.compare_set(f"{meeting}/decision", "", f"rank {rank}: {_OLDER}")', "pass",
        "tests/ranks/test_older_builds.py::test_an_engines_ranks_hear_of_it_on_both_sides",
    ),
    Mutant(
        "a rank of protocol 2 is told why", "coordination/versions.py",
        '"plugin": {"build": BUILD, "card": card}}', '"plugin": BUILD, **card}',
        "tests/ranks/test_older_builds.py::test_a_rank_of_protocol_2_says_which_builds_differ",
    ),
    Mutant(
        "a card of another build is not read", "coordination/versions.py",
        "if reason := other_version(build):", 'if reason := "":',
        "tests/ranks/test_older_builds.py::"
        "test_a_card_of_another_protocol_is_refused_with_the_remedy",
    ),
    Mutant(
        "what a rank tunes for itself stays over a load", "tuner/tuner_state.py",
        "        compat.put_in_memory(tuner, self._memory)\n", "",
        "tests/tuner/test_install.py::test_others_entries_survive_and_never_stand_over_ours",
    ),
    Mutant(
        "what a rank tunes for itself is timed in step 5", "steps/tune.py",
        '    with job.timed("tune"), Shutdown(lambda: None) as shutdown:',
        "    with Shutdown(lambda: None) as shutdown:",
        "tests/ranks/test_no_collective.py::test_ranks_left_alone_time_nothing_during_a_collective_either",
    ),
    Mutant(
        "side effects are swept", "steps/tune.py",
        " and task.op not in job.ops.one_rank", "",
        "tests/tuner/test_rounds.py::test_swept_as_without_a_race",
    ),
)  # fmt: skip


def survives(mutant: Mutant) -> bool:
    """Return whether the named test passes without its guard, or cannot be run."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        package = Path(place) / "warmup_plugin"
        shutil.copytree(CHECKOUT / "warmup_plugin", package)
        file = package / mutant.file
        text = file.read_text(encoding="utf-8")
        if text.count(mutant.old) != 1:
            print(f"  {mutant.file} has the guard {text.count(mutant.old)} times", flush=True)
            return True
        file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        path = os.pathsep.join(filter(None, (place, os.environ.get("PYTHONPATH"))))
        # -P: the checkout, where pytest runs, would come before the copy.
        command = [sys.executable, "-P", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
                   "--no-header", mutant.test]  # fmt: skip
        done = subprocess.run(
            command, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": path},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    # 1: tests were run, and some failed; Python ends so too, where it has no pytest.
    is_missed = done.returncode == 1 and bool(re.search(r"\d (failed|error)", done.stdout))
    if not is_missed:
        print(done.stdout[-2000:], done.stderr[-500:], flush=True)
    return not is_missed


def main() -> int:
    wanted = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.guard in sys.argv[1:]]
    alive = []
    for mutant in wanted:
        began = time.monotonic()
        if survives(mutant):
            alive.append(mutant.guard)
        word = "SURVIVES" if mutant.guard in alive else "found"
        print(f"{mutant.guard:25} {word:9} {time.monotonic() - began:5.1f} s  {mutant.test}",
              flush=True)  # fmt: skip
    print(f"{len(wanted) - len(alive)} of {len(wanted)} guards are missed when they are gone")
    return bool(alive)


if __name__ == "__main__":
    sys.exit(main())
