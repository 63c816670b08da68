import assert from 'node:assert/strict';
import { checkpointOptions, globalOptions, restoreOptions } from '../oci-spec/runtime-options.js';
import { parseArguments, refuseUnbuilt } from './arguments.js';

const restore = [...globalOptions, ...restoreOptions];
const checkpoint = [...globalOptions, ...checkpointOptions];

describe('arguments of the runtime verbs', () => {
  it('reads what go-runc passes: single dashes, between other flags', () => {
    const words =
      '--root R --log L --log-format json restore --image-path I --work-path W --detach --pid-file P -no-subreaper --bundle B ID'.split(
        ' ',
      );
    assert.deepEqual(parseArguments(words, restore), {
      given: {
        root: 'R',
        log: 'L',
        'log-format': 'json',
        'image-path': 'I',
        'work-path': 'W',
        detach: true,
        'pid-file': 'P',
        'no-subreaper': true,
        bundle: 'B',
      },
      positionals: ['restore', 'ID'],
    });
  });

  it('reads what podman and conmon pass: repeated flags, flags that runc never had', () => {
    const once = parseArguments('checkpoint --image-path I --leave-running --leave-running ID'.split(' '), checkpoint);
    assert.deepEqual(once.given, { 'image-path': 'I', 'leave-running': true });
    const words = 'restore -b B --no-pivot --no-new-keyring --detach --preserve-fds 2 --tcp-close ID'.split(' ');
    assert.deepEqual(parseArguments(words, restore).positionals, ['restore', 'ID']);
  });

  it('takes flags after the id, global flags after the verb, values with an equals sign', () => {
    const { given, positionals } = parseArguments(
      ['checkpoint', 'ID', '--leave-running=true', '-root=/x=y', '--criu', '/usr/sbin/criu', '--file-locks=false'],
      checkpoint,
    );
    assert.deepEqual(given, { 'leave-running': true, root: '/x=y', criu: '/usr/sbin/criu', 'file-locks': false });
    assert.deepEqual(positionals, ['checkpoint', 'ID']);
  });

  it('says what is wrong in the words that callers look for', () => {
    assert.throws(
      () => parseArguments(['restore', '--lsm-mount-context'], restore),
      /^StasisError: flag needs an argument: --lsm-mount-context$/,
    );
    assert.throws(
      () => parseArguments(['restore', '--pre-dump', 'ID'], restore),
      /flag provided but not defined: -pre-dump/,
    );
    assert.throws(
      () => parseArguments(['restore', '--detach=maybe', 'ID'], restore),
      /invalid boolean value "maybe" for -detach/,
    );
  });

  it('refuses by name what is not built, and only if it is asked for', () => {
    const refuse = (words: string): void =>
      refuseUnbuilt(parseArguments(words.split(' '), checkpoint).given, checkpoint);
    for (const name of ['--lazy-pages', '--page-server a:1', '--auto-dedup']) {
      assert.throws(() => refuse(`checkpoint ${name} ID`), new RegExp(`cannot use ${name.split(' ')[0]}: `));
    }
    assert.throws(
      () => refuse('checkpoint --auto-dedup ID'),
      /matches the digests .* begin anew without --parent-path/,
    );
    assert.throws(() => refuse('checkpoint --empty-ns pid ID'), /namespace "pid" is not supported/);
    assert.throws(
      () => refuse('checkpoint --manage-cgroups-mode full ID'),
      /manage-cgroups-mode full: only soft, ignore is built/,
    );
    assert.throws(() => refuse('--log-format xml checkpoint ID'), /invalid log-format: xml/);
    refuse('checkpoint --lazy-pages=false --empty-ns network --manage-cgroups-mode soft --page-server= ID');
  });
});
