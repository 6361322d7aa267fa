// Package ui is the page of the workbench: `strake policy ui`. It shows who reaches whom, why, and what a change of policies would
// open and close. It changes nothing: what is tried in it stays in it.
//
// It is one page of our own, embedded, that asks for nothing but what this server has:
//
//	GET  /?token=T        lets a browser in, by a cookie; everything else wants that
//	GET  /                the page; /app.js, /style.css
//	GET  /api/matrix      the State's matrix, and where it was read and when
//	POST /api/reload      reads the State again; then as /api/matrix
//	GET  /api/policy      a policy as YAML: ?kind=&namespace=&name=; with &direction=&rule= also the rule's lines
//	GET  /api/findings    what lint finds
//	POST /api/try         {"yaml": policies to add or replace, "without": [names to remove]} → problems and differences
//
// Answers are JSON; errors are {"error": "…"}. Who may come: only with the token, which is made anew at each start, by the host's name that the page
// was opened with (so that no page of another site reaches it by a name of its own), and from the page itself.
package ui
