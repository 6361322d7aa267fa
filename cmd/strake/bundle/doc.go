// Package bundle collects what is needed to find out what is wrong with a node, in one archive that can be given away: nothing in it is
// secret. What may hold a secret is left out (Secrets, data of ConfigMaps, certificates' folders) or blackened (values of environment
// variables, commands' arguments that name a password, whatever looks like a token or a key in a log).
//
//	Write: one section after the other, each with a file, or with the reason why there is none
package bundle
