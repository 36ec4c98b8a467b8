// Package pseudoword learns words for visual concepts from a few pictures, and draws prompts with these words.
//
// The trainer learns a word, the registry stores its versions, and the generation service draws it:
//
//	client, err := pseudoword.New(pseudoword.Options{})
//	if err != nil { ... }
//	defer client.Close()
//	version, err := client.Learn(ctx, "rex", pictures, pseudoword.LearnOptions{Start: "dog"})
//	drawn, err := client.Draw(ctx, "a photo of <rex> on the beach", pseudoword.DrawOptions{Exact: true})
//	os.WriteFile("rex.png", drawn[0].Data, 0o644)
//
// A batch draws many pictures in the background into the server's object store:
//
//	batch, err := client.CreateBatch(ctx, &generationv1.Batch{Prompts: prompts, Seeds: 4})
//	batch, err = client.AwaitBatch(ctx, batch.GetName(), nil) // batch.GetManifestUri()
//
// The zero value of Options fits the servers of `pseudoword up`: three servers on loopback, tenant "default", no token.
//
// Every call takes its deadline and its cancellation from the context. When Draw is cancelled, the server frees the
// request's places within one step. A call that is answered with UNAVAILABLE is retried, with at most four attempts in
// all. Retries are safe: a call either only reads, or has a request id.
//
// A failed call returns an *Error:
//
//	var failure *pseudoword.Error
//	if errors.As(err, &failure) && failure.Reason == "WORD_UNKNOWN" { ... }
//
// For methods that this package does not wrap, use the generated clients: [Client.Registry], [Client.Trainer] and
// [Client.Generation].
package pseudoword
