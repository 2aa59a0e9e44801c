// SPDX-License-Identifier: GPL-2.0-only
/** For tests of what refuses bad input by an error with a code. */

/**
 * @returns a function that calls what it is given, and answers the code of the `kind` of error that was thrown, or `accepted` if
 * none was. Any other error is thrown on.
 */
export function codeOfError(
  kind: new (...args: never[]) => Error & { readonly code: string },
  accepted: string,
): (work: () => unknown) => string {
  return (work) => {
    try {
      work();
    } catch (error) {
      if (error instanceof kind) return error.code;
      throw error;
    }
    return accepted;
  };
}
