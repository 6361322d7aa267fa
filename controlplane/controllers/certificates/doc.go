// Package certificates answers CertificateSigningRequests: those of nodes are
// approved if the one who asks may have what it asks for (recognize.go), those
// that are approved for a signer of the cluster are signed (sign.go), and all
// go after a while.
//
// One reconcile does it all, so that a certificate is there two writes after
// its request. What is neither approved nor denied here is for people:
// `kubectl certificate approve`.
package certificates
