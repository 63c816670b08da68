// What --version prints: the lines that runc prints, which managers store verbatim.

// Set by the bundler; the compiled sources run without.
declare const __STASIS_VERSION__: string | undefined;
declare const __STASIS_COMMIT__: string | undefined;

export const stasisVersion = typeof __STASIS_VERSION__ === 'string' ? __STASIS_VERSION__ : '0.0.0-development';
const commit = typeof __STASIS_COMMIT__ === 'string' ? __STASIS_COMMIT__ : 'unknown';
/** Of the OCI runtime specification. */
export const specVersion = '1.0.2';

export function versionText(): string {
  return `stasis version ${stasisVersion}\ncommit: ${commit}\nspec: ${specVersion}\nnode: ${process.version}\n`;
}
