//! What an execution leaves for others: its result, or the end of the claim.

use super::*;

impl Step<'_, '_, '_> {
    /// Puts the outcome where others find it: a success for all, a failure for those who
    /// wait for it.
    pub(super) async fn leave(
        &self,
        outcome: &Outcome,
        executed: &Executed,
        ran: &mut Ran,
    ) -> Left {
        let left = patiently(AWAY_WAIT, CachedError::is_transient, || {
            self.try_leave(outcome.clone(), &executed.effects)
        });
        match left.await {
            Ok(left) => left,
            Err(error) => {
                ran.notes.push(format!("the result is not kept: {}", chain(&error)));
                Left::Nothing
            }
        }
    }

    async fn try_leave(
        &self,
        mut outcome: Outcome,
        effects: &SideEffects,
    ) -> Result<Left, CachedError> {
        let blobs: &Blobs = self.context.blobs;
        outcome.effects = result::put_effects(blobs, effects).await?;
        blobs.upload_tree(&outcome.layer).await?;
        blobs.upload(&[outcome.log]).await?;
        if !outcome.succeeded() {
            let bytes = serde_json::to_vec(&outcome).expect("an outcome is text and numbers");
            return Ok(Left::Failed(blobs.put(bytes.into()).await?));
        }
        blobs.put_many(self.key.messages.clone()).await?;
        blobs.upload_tree(&self.key.inputs).await?;
        let result = outcome.to_action_result(blobs, self.context.agent).await?;
        let (scope, action) = (self.request.scope, &self.key.action);
        self.context.actions.update_action_result(scope, action, result).await?;
        Ok(Left::Published)
    }
}
