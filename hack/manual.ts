// Man pages and shell completion of an installed copy, made of what its own
// --help prints: there is one place that knows the options. Called by
// hack/install; writes below PREFIX/share.
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

interface Verb {
  readonly name: string;
  readonly help: string;
}

export function installManual(prefix: string): readonly string[] {
  const help = (program: string, ...words: string[]): string =>
    execFileSync(join(prefix, 'bin', program), [...words, '--help'], { env: {}, cwd: '/', encoding: 'utf8' }).trimEnd();
  const overview = help('stasis');
  const verbs = [...overview.matchAll(/^ {0,2}([a-z-]+) {2,}\S/gm)].map(([, name]): Verb => {
    return { name: name!, help: help('stasis', name!) };
  });
  const criuHelp = help('stasis-criu');
  return [
    write(prefix, 'man/man8/stasis.8', stasisPage(overview, verbs)),
    write(prefix, 'man/man8/stasis-criu.8', criuPage(criuHelp)),
    write(prefix, 'bash-completion/completions/stasis', completion('stasis', verbs, overview)),
    write(prefix, 'bash-completion/completions/stasis-criu', criuCompletion(criuHelp)),
  ];
}

function write(prefix: string, name: string, text: string): string {
  const path = join(prefix, 'share', name);
  mkdirSync(join(path, '..'), { recursive: true, mode: 0o755 });
  writeFileSync(path, text, { mode: 0o644 });
  return path;
}

function stasisPage(overview: string, verbs: readonly Verb[]): string {
  return page('STASIS', 'stasis - container runtime that carries running containers', [
    ['SYNOPSIS', literal('stasis [global options] <verb> [options]')],
    [
      'DESCRIPTION',
      'An OCI runtime. Checkpoint and restore are its own; every other verb goes to the base runtime, runc or crun.',
    ],
    ['VERBS', literal(overview)],
    ...verbs.map(({ name, help }) => [name.toUpperCase(), literal(help)] as const),
    [
      'FILES',
      '/etc/stasis/config.json: {"runtime": "/path/to/runc"} names the base runtime; so does the variable STASIS_RUNTIME.',
    ],
    ['EXIT STATUS', '0: done. Runtime verbs: 1 for any failure. Others: 2 to 6 and 70, by who has to act.'],
    ['SEE ALSO', 'stasis-criu(8), runc(8), crun(1)'],
  ]);
}

function criuPage(help: string): string {
  return page('STASIS-CRIU', "stasis-criu - CRIU's command line and remote procedure calls on stasis's engine", [
    ['DESCRIPTION', 'Installed as criu as well, where runc, crun, podman and libcriu look for it.'],
    ['OPTIONS', literal(help)],
    ['SEE ALSO', 'stasis(8)'],
  ]);
}

function page(title: string, name: string, sections: readonly (readonly [heading: string, body: string])[]): string {
  const rendered = sections.map(([heading, body]) => `.SH ${heading}\n${body.startsWith('.nf') ? body : escape(body)}`);
  return [`.TH ${title} 8`, '.SH NAME', escape(name).replace(' \\- ', ' \\- '), ...rendered, ''].join('\n');
}

function literal(text: string): string {
  return `.nf\n${escape(text)}\n.fi`;
}

/** roff takes backslashes, hyphens and leading dots or quotes for its own. */
function escape(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replace(/^([.'])/gm, '\\&$1');
}

function optionsOf(help: string): string {
  return [...new Set([...help.matchAll(/--[a-z][a-z-]*/g)].map(([option]) => option))].join(' ');
}

function completion(program: string, verbs: readonly Verb[], overview: string): string {
  const others = 'create start run state kill delete exec list pause resume ps events update spec features';
  const cases = verbs.map(({ name, help }) => `    ${name}) words="${optionsOf(help)}" ;;`);
  return `# bash completion for ${program}
_${program}() {
  local word=\${COMP_WORDS[COMP_CWORD]} verb="" words i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case \${COMP_WORDS[i]} in -*) ;; *) verb=\${COMP_WORDS[i]}; break ;; esac
  done
  case $verb in
    "") words="${verbs.map(({ name }) => name).join(' ')} ${others} ${optionsOf(overview)}" ;;
${cases.join('\n')}
    *) words="" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  case $word in -*) ;; *) [ -n "$verb" ] && COMPREPLY+=($(compgen -f -- "$word")) ;; esac
}
complete -F _${program} ${program}
`;
}

function criuCompletion(help: string): string {
  return `# bash completion for stasis-criu
complete -o default -W "dump pre-dump restore check ${optionsOf(help)}" stasis-criu criu
`;
}
